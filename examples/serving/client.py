"""Ask a TensorFlow Serving model server what it sees in some images.

    bin/export --run=runs/NAME --output=saved/digits

    docker run --rm -p 8500:8500 -p 8501:8501 \\
        -v "$PWD/saved/digits:/models/digits:ro" -e MODEL_NAME=digits \\
        -v "$PWD/examples/serving/batching.config:/batching.config:ro" \\
        tensorflow/serving --enable_batching --batching_parameters_file=/batching.config

    python examples/serving/client.py --name=digits                     # gRPC, port 8500
    python examples/serving/client.py --name=digits --protocol=rest     # JSON, port 8501
    python examples/serving/client.py --name=cifar --signature=raw --images=images.npy

Without --images it sends test images of scikit-learn's digits, and prints the true classes too. A
file has images (N, height, width, channels): whole numbers 0..255 (uint8) for the signature "raw",
which cuts out the centre itself; for the others also floats in [0, 1], as large as the network's.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

import numpy as np

PORTS = {"grpc": 8500, "rest": 8501}
TIMEOUT = 30  # seconds


class ServerError(Exception):
    """The server refused the request, or there is none; the message is one line."""


def predict_grpc(
    images: np.ndarray, address: str, name: str, signature: str
) -> dict[str, np.ndarray]:
    """Send images (N, H, W, C) by gRPC; return every output of the signature, (N, width).

    Args:
        address: host:port.

    Raises:
        ServerError: see there.
    """
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
    # No request.output_filter: the server batches requests for all of a signature's outputs only.
    # An embedding of feature maps exceeds gRPC's limit of 4 MB.
    unlimited = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options=unlimited) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            response = stub.Predict(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            raise ServerError(f"{address}: {error.code().name}: {error.details()}") from error
    return {key: tf.make_ndarray(value) for key, value in response.outputs.items()}


def predict_rest(
    images: np.ndarray, address: str, name: str, signature: str, *, rows: bool = False
) -> dict[str, np.ndarray]:
    """Send images (N, H, W, C) as JSON; return every output of the signature, (N, width).

    Args:
        address: host:port.
        rows: one object an image in both directions, instead of one array an input and output;
            longer, but easy to put together by hand.

    Raises:
        ServerError: see there.
    """
    if rows:
        body = {"instances": [{"images": image} for image in images.tolist()]}
    else:
        body = {"inputs": {"images": images.tolist()}}
    request = urllib.request.Request(
        f"http://{address}/v1/models/{name}:predict",
        json.dumps({"signature_name": signature, **body}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        raise ServerError(f"{address}: {error.code}: {_reason(error.read())}") from error
    except OSError as error:
        raise ServerError(f"{address}: {getattr(error, 'reason', error)}") from error
    if rows:
        predictions = answer["predictions"]
        return {key: np.array([row[key] for row in predictions], "f4") for key in predictions[0]}
    return {key: np.array(values, "f4") for key, values in answer["outputs"].items()}


def _reason(body: bytes) -> str:
    try:
        return json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


def prepare(images: np.ndarray, signature: str) -> np.ndarray:
    """Return images as the signature takes them: uint8 for raw, float32 in [0, 1] for others."""
    if images.dtype == np.uint8:
        return images if signature == "raw" else images.astype(np.float32) / np.float32(255)
    if signature == "raw":
        raise ServerError(f"--images: raw takes whole numbers (uint8), not {images.dtype}")
    return images.astype(np.float32)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of logits (N, classes): of every signature, also of serve."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--protocol", choices=("grpc", "rest"), default="grpc")
    parser.add_argument("--rows", action="store_true", help="REST: one JSON object an image")
    parser.add_argument("--host", default="localhost", help="host or host:port")
    parser.add_argument("--name", default="digits", help="that the network is served by")
    parser.add_argument(
        "--signature", choices=("serving_default", "raw", "serve"), default="serving_default"
    )
    parser.add_argument("--images", help=".npy file, (N, height, width, channels)")
    parser.add_argument("--count", type=int, default=5, help="how many images to send at most")
    arguments = parser.parse_args(argv)
    address = arguments.host
    if ":" not in address:
        address = f"{address}:{PORTS[arguments.protocol]}"
    try:
        images, labels = _load(arguments.images)
        images = prepare(images[: arguments.count], arguments.signature)
        target = (images, address, arguments.name, arguments.signature)
        if arguments.protocol == "rest":
            outputs = predict_rest(*target, rows=arguments.rows)
        else:
            outputs = predict_grpc(*target)
    except ServerError as error:
        sys.exit(f"client: {' '.join(str(error).split())}")
    for number, row in enumerate(probabilities(outputs["logits"])):
        true = f", true {labels[number]}" if labels is not None else ""
        print(f"image {number}: class {row.argmax()}, probability {row.max():.3f}{true}")


def _load(file: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    if file is None:
        from cascade_keras import data

        return data.load("digits").test
    try:
        return np.load(file), None
    except (OSError, ValueError) as error:
        raise ServerError(f"--images: {file} cannot be read ({error})") from error


if __name__ == "__main__":
    main()
