"""A small server of OpenAI's completions API in a process of its own: a causal LM, with faults to switch on.

``python serving.py MODEL_FOLDER PORT`` prints its port (0 takes a free one) and serves until it is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

LOCK = threading.Lock()
STATE: dict[str, Any] = {"fault": None, "times": None, "asked": 0, "now": 0, "most": 0, "keys": [], "after": None}
CONTEXT = 128


class Server:
    """The process, from the side of a test."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        command = [sys.executable, __file__, str(folder), str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def control(self, **settings: Any) -> dict[str, Any]:
        """Set faults, reset counters; what was counted so far."""
        request = Request(f"http://127.0.0.1:{self.port}/control", json.dumps(settings).encode())
        with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
            return json.loads(answer.read())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Refused(Exception):
    """A status and what the body says."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


def fault(*names: str) -> bool:
    """Whether one of these faults is on; each time it is counts."""
    with LOCK:
        if STATE["fault"] not in names or STATE["times"] == 0:
            return False
        if STATE["times"] is not None:
            STATE["times"] -= 1
        return True


def laws(ids: list[int], k: int) -> list[dict[int, float] | None]:
    """The k best entries at each token, and the token itself, as vLLM gives them."""
    import torch

    with LOCK, torch.no_grad():
        log_p = MODEL(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    best = log_p.topk(min(k, log_p.shape[-1]), dim=-1)
    told: list[dict[int, float] | None] = [None]
    for place, own in enumerate(ids[1:]):
        law = {own: float(log_p[place, own])}
        told.append(law | dict(zip(best.indices[place].tolist(), best.values[place].tolist(), strict=True)))
    return told


def spoilt(told: list[Any]) -> list[Any]:
    """The laws with the fault that is on."""
    own = next(iter(told[1]))
    if fault("count"):
        return told[:-1]
    if fault("nan"):
        told[1][own] = float("nan")
    if fault("null"):
        told[1][own] = None
    if fault("positive"):
        told[1][own] = 0.5
    if fault("mass"):
        told[1] = dict.fromkeys(told[1], -0.1)
    if fault("few"):
        told[1] = {own: told[1][own]}
    if fault("vocabulary"):
        told[1][10**6] = -1e-3
        told[1] = {name: value if name == 10**6 else value - 9 for name, value in told[1].items()}
    return told


def completion(body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to one question."""
    ids = body["prompt"]
    if not isinstance(ids, list) or body["model"] != "large":
        raise Refused(404, f"The model `{body['model']}` does not exist.")
    if len(ids) + body["max_tokens"] > CONTEXT or fault("long"):
        raise Refused(400, f"This model's maximum context length is {CONTEXT} tokens. However, you requested more.")
    if "prompt_logprobs" in body:
        told = spoilt(laws(ids, body["prompt_logprobs"]))
        form = {
            "prompt_logprobs": [
                law and {str(name): {"logprob": value, "rank": 1, "decoded_token": "?"} for name, value in law.items()}
                for law in told
            ]
        }
        if fault("mute"):
            form = {"prompt_logprobs": None}  # type: ignore[dict-item]
    else:
        name_of = (lambda name: " the") if fault("text") else (lambda name: f"token_id:{name}")
        told = [*spoilt(laws(ids, body["logprobs"])), {7: -0.5}]
        tokens = [name_of(name) for name in [*ids[: len(told) - 1], 7]]
        top = [law and {name_of(name): value for name, value in law.items()} for law in told]
        form = {"logprobs": {"tokens": tokens, "top_logprobs": top}}  # type: ignore[dict-item]
    sent = [*ids[:-1], ids[-1] + 1] if fault("ids") else ids
    extra = {} if STATE["fault"] == "silent" else {"prompt_token_ids": sent}
    return {"object": "text_completion", "choices": [{"index": 0, "text": "?", **form, **extra}]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if fault("redirected"):
            self.reply(307, {}, {"Location": "http://elsewhere.invalid/v1/models"})
        elif self.path != "/v1/models":
            self.reply(404, {"detail": "Not Found"})
        else:
            self.reply(200, {"object": "list", "data": [{"id": "small"}, {"id": "large", "max_model_len": CONTEXT}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/control":
            with LOCK:
                known = dict(STATE)
                STATE.update({"asked": 0, "most": 0, "keys": [], "fault": None, "times": None, "after": None} | body)
            self.reply(200, known)
        else:
            self.reply(*self.asked(body))

    def asked(self, body: Mapping[str, Any]) -> tuple[Any, ...]:
        with LOCK:
            STATE["asked"] += 1
            STATE["now"] += 1
            STATE["most"] = max(STATE["most"], STATE["now"])
            STATE["keys"].append(self.headers.get("Authorization"))
            last = STATE["after"] is not None and STATE["asked"] > STATE["after"]
        if last:
            os._exit(1)
        try:
            return self.answer(body)
        finally:
            with LOCK:
                STATE["now"] -= 1

    def answer(self, body: Mapping[str, Any]) -> tuple[Any, ...]:
        try:
            if fault("busy"):
                raise Refused(503, "loading", {"Retry-After": "0.05"})
            if fault("crowded"):
                raise Refused(429, "too many", {"Retry-After": "3600"})
            if fault("unauthorised"):
                raise Refused(401, f"Incorrect API key provided: {self.headers.get('Authorization')}\x1b[31m")
            if fault("slow"):
                time.sleep(1.0)
            if fault("steady"):
                time.sleep(0.05)
            content = json.dumps(completion(body)).encode()
            if fault("page"):
                content = b"<html>\x1b[31mhello</html>"
            return 200, content[:-40] if fault("cut") else content, {}, len(content)
        except Refused as error:
            return error.status, {"error": {"message": str(error)}}, error.headers

    def reply(
        self, status: int, content: Any, headers: Mapping[str, str] | None = None, size: int | None = None
    ) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(size or len(raw)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # the client had no patience
            self.wfile.write(raw)
        if size is not None and size > len(raw):
            self.close_connection = True


if __name__ == "__main__":
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    MODEL = LlamaForCausalLM.from_pretrained(sys.argv[1]).eval()
    ThreadingHTTPServer.allow_reuse_address = True
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
