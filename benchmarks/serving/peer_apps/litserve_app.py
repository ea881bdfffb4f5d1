"""LitServe: one API process, one worker, and its fast queue: `python litserve_app.py PORT`."""

import sys

import litserve  # pyright: ignore[reportMissingImports]
from forward import Forward


class Tiny(litserve.LitAPI):
    """{"input": [16 numbers]} to {"output": [10 numbers]}. LitServe reads annotations; it finds none."""

    def setup(self, device):
        """In the worker's process."""
        self.forward = Forward()

    def decode_request(self, request):
        """The numbers."""
        return request["input"]

    def predict(self, x):
        """The outputs."""
        return self.forward([x])[0]

    def encode_response(self, output):
        """As JSON."""
        return {"output": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Tiny(), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error")
