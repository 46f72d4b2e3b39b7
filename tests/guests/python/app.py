"""An HTTP handler for componentize-py: it says which method and path came, and gives the body back in capitals."""

from componentize_py_types import Ok
from wit_world import exports
from wit_world.imports.types import (
    Fields, IncomingRequest, Method_Get, Method_Post, OutgoingBody, OutgoingResponse, ResponseOutparam,
)


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        method = request.method()
        name = {Method_Get: "GET", Method_Post: "POST"}.get(type(method), "another")
        path = request.path_with_query() or "/"
        body = read(request).decode().upper() if name == "POST" else ""
        response = OutgoingResponse(Fields.from_list([("x-language", b"python")]))
        response.set_status_code(200)
        outgoing = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        with outgoing.write() as stream:
            stream.blocking_write_and_flush(f"Python: {name} {path} {body}\n".encode())
        OutgoingBody.finish(outgoing, None)


def read(request: IncomingRequest) -> bytes:
    whole = b""
    with request.consume() as body, body.stream() as stream:
        while True:
            try:
                whole += stream.blocking_read(4096)
            except Exception:  # The end of a stream comes as an error.
                return whole
