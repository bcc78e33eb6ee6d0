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


class ModelServer(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Serves one network, named by its folder."""

    def __init__(self, base):
        self.name = base.name
        self.version = saved_versions(base)[-1]
        self.loaded = tf.saved_model.load(str(base / str(self.version)))

    def signature(self, name, signature_name):
        if name != self.name:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Servable not found: {name}")
        try:
            return self.loaded.signatures[signature_name or "serving_default"]
        except KeyError:
            message = f"Serving signature name: {signature_name} not found in signature def"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, message) from None

    def predict(self, request):
        spec = request.model_spec
        signature = self.signature(spec.name, spec.signature_name)
        expected = signature.structured_input_signature[1]
        if set(request.inputs) != set(expected):
            message = f"input keys {sorted(request.inputs)} but signature has {sorted(expected)}"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
        inputs = {key: tf.constant(tf.make_ndarray(v)) for key, v in request.inputs.items()}
        for key, value in inputs.items():
            if value.dtype != expected[key].dtype:
                message = f"{key}: {value.dtype.name} is not {expected[key].dtype.name}"
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
            if not expected[key].shape.is_compatible_with(value.shape):
                message = f"{key}: shape {value.shape} is not {expected[key].shape}"
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
        response = predict_pb2.PredictResponse()
        response.model_spec.CopyFrom(spec)
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
        """Answer a POST: JSON object in, JSON object out."""
        match = re.fullmatch(r"/v1/models/([^/]+)(?:/versions/\d+)?:predict", path)
        if not match:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"Malformed request: POST {path}")
        if ("instances" in body) == ("inputs" in body):
            message = "JSON Value must have either 'instances' or 'inputs'"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = match[1]
        request.model_spec.signature_name = body.get("signature_name", "")
        signature = self.signature(match[1], request.model_spec.signature_name)
        specs = signature.structured_input_signature[1]
        columns = body["inputs"] if "inputs" in body else _columns(body["instances"])
        if not isinstance(columns, dict):  # a single input need not be named
            columns = dict.fromkeys(specs, columns)
        for key, value in columns.items():
            if key in specs:
                array = _array(key, value, specs[key].dtype.as_numpy_dtype)
                request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
        response = self.predict(request)
        outputs = {key: tf.make_ndarray(v).tolist() for key, v in response.outputs.items()}
        if "inputs" in body:
            return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
        if len(outputs) == 1:
            return {"predictions": next(iter(outputs.values()))}
        return {"predictions": [dict(zip(outputs, row)) for row in zip(*outputs.values())]}


def _columns(instances):
    """Rows to columns: a list of objects, or of the values of the only input."""
    if not isinstance(instances[0], dict):
        return instances
    return {key: [row[key] for row in instances] for key in instances[0]}


def _array(key, value, dtype):
    array = np.array(value)
    if array.dtype.kind not in ("iu" if np.dtype(dtype).kind in "iu" else "iuf"):
        message = f"JSON Value of {key} is not of expected type: {np.dtype(dtype).name}"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
    return array.astype(dtype)


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
