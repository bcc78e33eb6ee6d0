"""What a model server does with a Predict request, over gRPC and REST.

TensorFlow Serving's own server is on no package index. This one answers from the signatures of a
saved network's largest version and follows the documented behaviour of the real one: the protos of
tensorflow-serving-api, and the row and column formats of its REST API.
"""

import concurrent.futures
import contextlib
import http.server
import json
import re
import threading

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from cascade_keras.provenance import saved_versions


class Refused(Exception):
    """A request that a server answers with an error."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def require(condition, message):
    if not condition:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


class ModelServer(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Serves one network, named by its folder."""

    def __init__(self, base):
        self.name = base.name
        self.version = saved_versions(base)[-1]
        self.loaded = tf.saved_model.load(str(base / str(self.version)))

    def signature(self, spec):
        """The function that a request names, and the specs of its inputs."""
        if spec.name != self.name:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Servable not found: {spec.name}")
        try:
            found = self.loaded.signatures[spec.signature_name or "serving_default"]
        except KeyError:
            message = f"Serving signature name: {spec.signature_name} not found in signature def"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, message) from None
        return found, found.structured_input_signature[1]

    def predict(self, request):
        signature, expected = self.signature(request.model_spec)
        require(
            set(request.inputs) == set(expected),
            f"input keys {sorted(request.inputs)} but signature has {sorted(expected)}",
        )
        inputs = {key: tf.constant(tf.make_ndarray(v)) for key, v in request.inputs.items()}
        for key, value in inputs.items():
            given = tf.TensorSpec.from_tensor(value)
            require(expected[key].is_compatible_with(given), f"{given} is not {expected[key]}")
        response = predict_pb2.PredictResponse()
        response.model_spec.CopyFrom(request.model_spec)
        response.model_spec.version.value = self.version
        for key, value in signature(**inputs).items():
            # What the server's batching relies on when it cuts a batch apart again.
            assert value.shape[0] == len(inputs["images"])
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
        return response

    def Predict(self, request, context):
        try:
            return self.predict(request)
        except Refused as error:
            context.abort(error.code, str(error))

    def rest(self, path, body):
        """Answer a POST: JSON object in, JSON object out; by columns, or by rows."""
        match = re.fullmatch(r"/v1/models/([^/]+):predict", path)
        require(match, f"Malformed request: POST {path}")
        rows = "instances" in body
        require(rows != ("inputs" in body), "must have either 'instances' or 'inputs'")
        request = predict_pb2.PredictRequest()
        request.model_spec.name = match[1]
        request.model_spec.signature_name = body.get("signature_name", "")
        specs = self.signature(request.model_spec)[1]
        given = body["inputs"] if not rows else _columns(body["instances"])
        for key in specs.keys() & given.keys():
            values, dtype = np.array(given[key]), np.dtype(specs[key].dtype.as_numpy_dtype)
            known = "iu" if dtype.kind in "iu" else "iuf"
            require(values.dtype.kind in known, f"{key} is not of expected type: {dtype}")
            request.inputs[key].CopyFrom(tf.make_tensor_proto(values.astype(dtype)))
        outputs = self.predict(request).outputs
        outputs = {key: tf.make_ndarray(v).tolist() for key, v in outputs.items()}
        if rows:
            return {"predictions": [dict(zip(outputs, row)) for row in zip(*outputs.values())]}
        return {"outputs": outputs}


def _columns(instances):
    return {key: [row[key] for row in instances] for key in instances[0]}


def _handler(server):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                status, answer = 200, server.rest(self.path, body)
            except Refused as error:
                status = 404 if error.code == grpc.StatusCode.NOT_FOUND else 400
                answer = {"error": str(error)}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    return Handler


@contextlib.contextmanager
def serve(base):
    """Serve a saved network's folder: {"grpc": host:port, "rest": host:port}."""
    server = ModelServer(base)
    rpc = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(server, rpc)
    port = rpc.add_insecure_port("localhost:0")
    rpc.start()
    web = http.server.ThreadingHTTPServer(("localhost", 0), _handler(server))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        yield {"grpc": f"localhost:{port}", "rest": f"localhost:{web.server_port}"}
    finally:
        web.shutdown()
        web.server_close()
        rpc.stop(None).wait()
