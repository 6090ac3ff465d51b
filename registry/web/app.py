"""The web application of a server: our own routes, those of the protocols of others, health, metrics, OpenAPI.

Kept thin: a body is decoded once, its rows go to the engine, and what comes back is encoded once.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette import requests as web
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from registry.errors import RegistryError, ServerError
from registry.serving.answering import Answering
from registry.serving.predictor import Request
from registry.serving.waiting import Job
from registry.version import __version__
from registry.web.asking import Asker, json_response, read_body
from registry.web.bodies import (
    AdapterBody,
    Answers,
    Failed,
    ListedAdapter,
    ListedAdapters,
    Route,
    RowsBody,
    TextsBody,
    check_rows,
    decode,
    describe,
    requests_of,
    schemas,
)
from registry.web.gate import ApiKeys, Gate, Receive, Scope, Send, error_response, visitor_of
from registry.web.huggingface import HuggingFaceRoutes
from registry.web.open_inference import OpenInferenceRoutes
from registry.web.page import PlaygroundPage
from registry.web.stream import StreamRoutes
from registry.web.telemetry import Telemetry

PAGE_NAMES = 1_000  # listed at a time


@dataclass(frozen=True)
class AppSettings:
    """How a server treats its clients.

    Attributes:
        keys: who may ask; None lets everybody in.
        cors: origins whose pages may ask.
        logs, log_texts: whether requests are told in the log, and their texts as well.
        shared_metrics: whether several processes tell their metrics together.
    """

    keys: ApiKeys | None = None
    cors: tuple[str, ...] = ()
    logs: bool = True
    log_texts: bool = False
    shared_metrics: bool = False


class OwnRoutes:
    """Our own routes, but that of streams.

    Args:
        asker: brings rows to the engine.
        telemetry: tells of it.
    """

    def __init__(self, asker: Asker, telemetry: Telemetry) -> None:
        self._asker, self._engine, self._telemetry = asker, asker.engine, telemetry
        self._store, self._words = asker.store, asker.words

    @property
    def table(self) -> list[Route]:
        """Return the routes."""
        rows = describe(RowsBody, Answers, _ROWS, _ANSWERED)
        texts, plain = describe(TextsBody, Answers, _TEXTS, _ANSWERED), describe(None, None)
        known = describe(None, AdapterBody)
        return [
            Route("POST", "/v1/predict", self.predict, rows, (RowsBody, Answers, Failed)),
            Route("POST", "/v1/adapters/{reference}/predict", self.predict_one, texts, (TextsBody,)),
            Route("GET", "/v1/adapters", self.adapters, describe(None, ListedAdapters), (ListedAdapters,)),
            Route("GET", "/v1/adapters/{reference}", self.adapter, known, (AdapterBody,)),
            *(Route("GET", f"{start}/health/live", self.live, plain) for start in ("", "/v2")),
            *(Route("GET", f"{start}/health/ready", self.ready, plain) for start in ("", "/v2")),
            Route("GET", "/metrics", self.metrics, plain),
        ]

    async def predict(self, request: web.Request) -> Response:
        """Answer rows of any sets, in their order; a row that cannot be answered has its error in its place."""
        body = decode(RowsBody, await read_body(request))
        rows = check_rows([Request(row.adapter, row.text, row.pair) for row in body.rows])
        return self._answered(request, await self._asker.ask(request, rows), body.top_k)

    async def predict_one(self, request: web.Request) -> Response:
        """Answer texts with one set."""
        body = decode(TextsBody, await read_body(request))
        rows = check_rows(requests_of(body, request.path_params["reference"]))
        return self._answered(request, await self._asker.ask(request, rows), body.top_k)

    def _answered(self, request: web.Request, job: Job, top_k: int | None) -> Response:
        visitor = visitor_of(request)
        answers = [self._words.answer(each, visitor.may_ask, top_k) for each in job.answers if each is not None]
        failed = sum(answer.error is not None for answer in answers)
        status = 422 if failed and request.query_params.get("strict") in ("1", "true") else 200
        return json_response(Answers(request_id=visitor.request_id, failed=failed, answers=answers), status)

    async def adapters(self, request: web.Request) -> Response:
        """List names, versions and aliases, in order, so many at a time."""
        after = request.query_params.get("after", "")
        given = request.query_params.get("limit", "")
        limit = min(int(given), PAGE_NAMES) if given.isascii() and given.isdigit() else PAGE_NAMES
        return json_response(await asyncio.to_thread(self._listed, visitor_of(request).may_ask, after, max(1, limit)))

    def _listed(self, sees: Any, after: str, limit: int) -> ListedAdapters:
        names = [name for name in self._store.names() if name > after and sees(name)]
        listed = []
        for name in names[:limit]:
            try:
                versions, aliases = self._store.versions(name), self._store.aliases(name)
                manifest = self._store.manifest(name, versions[-1])
                own = ListedAdapter(name=name, versions=versions, aliases=aliases)
                own.task, own.labels = manifest.task, manifest.head.label_names
                listed.append(own)
            except RegistryError as err:
                listed.append(ListedAdapter(name=name, versions=[], aliases={}, error=self._words.error(err, sees)))
        return ListedAdapters(adapters=listed, next=names[limit - 1] if len(names) > limit else None)

    async def adapter(self, request: web.Request) -> Response:
        """Tell what is known of a stored set."""
        return json_response(await asyncio.to_thread(self._asker.known, request, request.path_params["reference"]))

    async def live(self, request: web.Request) -> Response:
        """Tell whether the engine is at work."""
        return json_response({"live": self._engine.is_alive}, 200 if self._engine.is_alive else 503)

    async def ready(self, request: web.Request) -> Response:
        """Tell whether requests are taken."""
        is_ready = self._engine.is_alive and not self._engine.is_draining
        return json_response({"ready": is_ready}, 200 if is_ready else 503)

    async def metrics(self, request: web.Request) -> Response:
        """Tell the metrics in Prometheus' text format."""
        return Response(self._telemetry.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def create_app(engine: Answering, settings: AppSettings | None = None) -> FastAPI:
    """Return the web application of an engine that is at work; it closes the engine when it ends."""
    settings = settings or AppSettings()
    telemetry = Telemetry(engine, shared=settings.shared_metrics)
    asker = Asker(engine, log_texts=settings.log_texts)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close, 1.0)

    app = FastAPIOffline(title="adapter-registry", version=__version__, description=_ABOUT, lifespan=lifespan)
    app.state.telemetry = telemetry
    _add_routes(
        app,
        [
            route
            for own in (
                OwnRoutes(asker, telemetry),
                StreamRoutes(asker),
                HuggingFaceRoutes(asker),
                OpenInferenceRoutes(asker),
            )
            for route in own.table
        ],
    )
    app.add_route("/", PlaygroundPage().show)

    async def tell(request: web.Request, error: Any) -> Response:
        return error_response(request.scope, asker.words, error)

    async def tell_http(request: web.Request, error: Any) -> Response:
        asked = f"{request.method} {request.url.path[:80]}"
        return await tell(request, ServerError(error.status_code, f"answer {asked}", "a route of /docs", error.detail))

    async def tell_bug(request: web.Request, error: Any) -> Response:
        return await tell(request, ServerError(500, "answer", "no error of the server's own", type(error).__name__))

    for kind, handler in ((RegistryError, tell), (HTTPException, tell_http), (Exception, tell_bug)):
        app.add_exception_handler(kind, handler)
    app.add_middleware(
        Gate, words=asker.words, telemetry=telemetry, keys=settings.keys, logs=settings.logs or settings.log_texts
    )
    if settings.cors:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors, allow_methods=["*"], allow_headers=["*"])
    return app


def _add_routes(app: FastAPI, routes: Sequence[Route]) -> None:
    """Add routes, and what OpenAPI tells of them and of their bodies.

    They are Starlette's own: their bodies are decoded here already, and FastAPI's way to a function takes longer than
    all of that.
    """
    for route in routes:
        app.router.routes.append(_Counted(route.path, route.function, methods=[route.method]))

    def describe_all() -> dict[str, Any]:
        if app.openapi_schema is None:
            own = get_openapi(title=app.title, version=app.version, description=app.description, routes=[])
            for route in routes:
                own["paths"].setdefault(route.path, {})[route.method.lower()] = _told(route)
            bodies = dict.fromkeys(body for route in routes for body in route.bodies)
            own.setdefault("components", {}).setdefault("schemas", {}).update(schemas(tuple(bodies)))
            app.openapi_schema = own
        return app.openapi_schema

    app.openapi = describe_all  # type: ignore[method-assign]


class _Counted(StarletteRoute):
    """A route that the metrics can tell from others, by whichever release of Starlette."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self
        await super().handle(scope, receive, send)


def _told(route: Route) -> dict[str, Any]:
    """Return what OpenAPI tells of a route."""
    name, about = route.function.__name__, inspect.getdoc(route.function) or ""
    given = [
        {"name": each, "in": "path", "required": True, "schema": {"type": "string"}}
        for each in re.findall(r"{(\w+)}", route.path)
    ]
    known = {"summary": name.replace("_", " ").capitalize(), "description": about}
    return {**known, "operationId": f"{name}{re.sub('[^a-z0-9]+', '_', route.path)}", **route.told, "parameters": given}


_ABOUT = "One frozen encoder, many adapter sets: rows of any sets are answered in one pass."
_ROWS = {"rows": [{"adapter": "sst2", "text": "a gripping film"}, {"adapter": "sst2:1", "text": "dull"}]}
_TEXTS = {"texts": ["The council approved it."], "pairs": ["It was approved by the council."]}
_ANSWERED = {
    "request_id": "8f2c",
    "failed": 0,
    "answers": [
        {
            "reference": "sst2:1",
            "label": "positive",
            "probabilities": {"negative": 0.001, "positive": 0.999},
            "truncated": False,
        }
    ],
}
