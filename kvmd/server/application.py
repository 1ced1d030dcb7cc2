"""What is answered to which request; every answer comes from memory, every fault is JSON with a hint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvmd import __version__
from kvmd.api.resource import API_VERSION
from kvmd.engine.facade import Agent, Answer
from kvmd.errors import KvmdError
from kvmd.render import vocabulary
from kvmd.render.topology import topology_data
from kvmd.render.values import listing, plain_data
from kvmd.server.peer import Peer
from kvmd.server.workers import Overloaded, Workers
from kvmd.telemetry import log

READ_SECONDS = 10.0
ACT_SECONDS = 30.0
_MOST_BODY_BYTES = 65_536
_VERBS = ("approve", "suspend", "resume", "reconcile", "start", "stop", "restart", "apply")
_STATUS_OF_CODE = {0: 200, 3: 404, 6: 409}
_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"

Endpoint = Callable[[Request], Awaitable[Response]]


class Application:
    """The routes; with *actors* and the *group* of the UNIX socket also the acts."""

    def __init__(
        self, agent: Agent, readers: Workers, actors: Workers | None = None, *, group: int | None = None
    ) -> None:
        self._agent = agent
        self._readers = readers
        self._actors = actors
        self._group = group
        self._log = log.get("server")

    def asgi(self) -> Starlette:
        """Build the ASGI application."""
        routes = [
            Route("/metrics", self._metrics),
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/api/v1/objects", self._json(lambda request: listing(self._agent.objects()))),
            Route("/api/v1/events", self._json(self._events)),
            Route("/api/v1/plan", self._json(lambda request: self._agent.plan().as_data())),
            Route("/api/v1/source", self._json(lambda request: self._agent.source())),
            Route("/api/v1/topology", self._json(self._topology)),
            Route("/api/v1/version", self._json(lambda request: {"version": __version__, "apiVersion": API_VERSION})),
            Route("/api/v1/actions/{verb}", self._act, methods=["POST"]),
            Route("/api/v1/{kind}", self._json(self._kind)),
            Route("/api/v1/{kind}/{name}", self._json(self._object)),
        ]
        handlers: dict[Any, Any] = {
            HTTPException: _on_http_error,
            TimeoutError: _on_timeout,
            Overloaded: _on_overload,
            KvmdError: _on_kvmd_error,
            Exception: _on_error,
        }
        return Starlette(routes=routes, exception_handlers=handlers)

    # ------------------------------------------------------------------------------------------- reading

    async def _metrics(self, request: Request) -> Response:
        return Response(await self._call(self._agent.metrics), media_type=_TEXT_FORMAT)

    async def _healthz(self, request: Request) -> Response:
        return _health(*await self._call(self._agent.healthy))

    async def _readyz(self, request: Request) -> Response:
        return _health(*await self._call(self._agent.ready))

    def _json(self, make: Callable[[Request], Any]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            # 1,000 objects take milliseconds to serialise: not on the loop
            answer: Response = await self._call(lambda: _answer(make(request)))
            return answer

        return endpoint

    async def _call(self, function: Callable[[], Any]) -> Any:
        return await self._readers.call(function, READ_SECONDS)

    def _events(self, request: Request) -> dict[str, Any]:
        after = request.query_params.get("after", "0")
        if not after.isdecimal():
            raise HTTPException(400, f"after='{after}' is not a number")
        return listing([event.as_data() for event in self._agent.events(int(after))])

    def _topology(self, request: Request) -> dict[str, Any]:
        return listing(topology_data(self._agent.objects(), request.query_params.get("vm")))

    def _kind(self, request: Request) -> dict[str, Any]:
        kind = _kind_of(request)
        return listing([item for item in self._agent.objects() if item["kind"] == kind])

    def _object(self, request: Request) -> dict[str, Any]:
        kind, name = _kind_of(request), request.path_params["name"]
        for item in self._agent.objects():
            if item["kind"] == kind and item["metadata"]["name"] == name:
                return item
        raise HTTPException(404, f"there is no {kind}/{name}")

    # -------------------------------------------------------------------------------------------- acting

    async def _act(self, request: Request) -> Response:
        peer, actors = self._allowed(request)
        verb = request.path_params["verb"]
        if verb not in _VERBS:
            raise HTTPException(404, f"there is no act '{verb}'; there are {', '.join(_VERBS)}")
        data = await _body(request)
        reference, options = data.get("object", ""), data.get("options", {})
        if not isinstance(reference, str) or not isinstance(options, dict):
            raise HTTPException(400, 'the body must be {"object": "Kind/name", "options": {…}}')
        options = {**options, "caller": peer.as_data()}
        answer: Answer = await actors.call(lambda: self._agent.act(verb, reference, options), ACT_SECONDS)
        self._log.info("act", verb=verb, object=reference, code=answer.code, answer=answer.message, **peer.as_data())
        return _answer(answer.as_data(), _STATUS_OF_CODE.get(answer.code, 422))

    def _allowed(self, request: Request) -> tuple[Peer, Workers]:
        peer: Peer | None = getattr(request.state, "peer", None)
        if self._actors is None or self._group is None or peer is None:
            raise HTTPException(403, "acts are only taken on the UNIX socket")
        if not peer.may_act(self._group):
            self._log.warning("act refused", path=request.url.path, **peer.as_data())
            raise HTTPException(403, f"user {peer.uid} is neither root nor in group {self._group} of the socket")
        return peer, self._actors


def _kind_of(request: Request) -> str:
    word = request.path_params["kind"]
    kind = vocabulary.kind_of(word)
    if kind is None:
        suggestion = vocabulary.suggestion(word)
        raise HTTPException(404, f"there is no kind '{word}'{f'; {suggestion}' if suggestion else ''}")
    return kind


async def _body(request: Request) -> dict[str, Any]:
    received = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for chunk in request.stream():
                received += chunk
                if len(received) > _MOST_BODY_BYTES:
                    raise HTTPException(413, f"the body is larger than {_MOST_BODY_BYTES} bytes")
        data = json.loads(received or b"{}")
    except ValueError:
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(data, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return data


def _answer(data: Any, status: int = 200) -> Response:
    text = json.dumps(plain_data(data), ensure_ascii=False, separators=(",", ":"))
    return Response(text + "\n", status, media_type="application/json")


def _health(good: bool, details: dict[str, Any]) -> Response:
    return _answer({"status": "ok" if good else "failing", **details}, 200 if good else 503)


def _fault(status: int, message: str, hint: str = "") -> Response:
    return _answer({"message": message, "hint": hint}, status)


_HINTS = {
    403: "use the kvmd command as root (sudo kvmd …) or as a member of the socket's group",
    404: "see /api/v1/objects for what there is",
    405: "reads are GET; acts are POST /api/v1/actions/{verb} on the UNIX socket",
}


def _on_http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = str(getattr(error, "detail", error))
    return _fault(status, message, _HINTS.get(status, ""))


def _on_timeout(request: Request, error: Exception) -> Response:
    return _fault(503, "the agent did not answer in time", "journalctl -u kvmd says what holds it up")


def _on_overload(request: Request, error: Exception) -> Response:
    return _fault(503, "too many requests are waiting", "ask again in a moment")


def _on_kvmd_error(request: Request, error: Exception) -> Response:
    return _fault(422, getattr(error, "message", str(error)), getattr(error, "hint", ""))


def _on_error(request: Request, error: Exception) -> Response:
    return _fault(
        500, f"{type(error).__name__} inside kvmd", "journalctl -u kvmd has the traceback; please report it"
    )
