"""A local HTTP server that speaks the OpenAI protocol, in the dialect of vLLM or of OpenAI; keeps every request."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Says = Callable[["Server", str, dict[str, Any]], "str | dict[str, float] | tuple[int, Any] | bytes"]
"""What a server answers to (itself, path, request): a reply's text; the first token's probabilities; a status and a
body, or bytes as they are."""


class Server(ThreadingHTTPServer):
    """`says` decides the reply. `chat_only`: texts are not completed. `newer`: OpenAI's newer parameters only."""

    says: Says
    chat_only = False
    newer = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[dict[str, Any]] = []
        self.finish = "stop"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append({"path": self.path, "key": self.headers["Authorization"], **body})
        if self.path != "/v1/chat/completions" and (self.server.chat_only or self.path != "/v1/completions"):
            return self._send(404, {"error": {"message": "This is not a completion model"}})
        if self.server.newer and "max_tokens" in body:
            return self._complain("max_tokens", "Use 'max_completion_tokens' instead.")
        if self.server.newer and "temperature" in body:
            return self._complain("temperature", "Only the default (1) value is supported.")
        said = self.server.says(self.server, self.path, body)
        if isinstance(said, tuple):
            return self._send(*said)
        if isinstance(said, bytes):
            return self._send(200, said)
        return self._send(200, self._reply(said, body))

    def _complain(self, name: str, words: str) -> None:
        message = f"Unsupported parameter: '{name}' is not supported with this model. {words}"
        self._send(400, {"error": {"message": message, "param": name, "type": "invalid_request_error"}})

    def _reply(self, said: str | dict[str, float], body: dict[str, Any]) -> dict[str, Any]:
        chances = said if isinstance(said, dict) else {}
        text = max(chances, key=lambda word: chances[word]) if isinstance(said, dict) else said
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.server.finish, "logprobs": None}
        logs = {word: math.log(share) for word, share in chances.items()}
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": text}
            if body.get("logprobs") and chances:
                listed = [{"token": word, "logprob": log, "bytes": None} for word, log in logs.items()]
                first = {"token": text, "logprob": logs[text], "bytes": None, "top_logprobs": listed}
                choice["logprobs"] = {"content": [first]}
        else:
            choice["text"] = text
            if body.get("logprobs") and chances:
                choice["logprobs"] = {"top_logprobs": [logs], "tokens": [text]}
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        return {
            "id": "x",
            "object": "x",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }

    def _send(self, code: int, value: Any) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if code == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()
