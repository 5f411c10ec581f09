"""The server: what the sink has put into Redis, for browsers and programs.

GET /                  a page that lists the topics
GET /live/TOPIC        a page that shows a topic's live state
GET /topics            {"topics": [{topic, keys, partitions}]}
GET /state/TOPIC       {"topic", "cursor", "records": {KEY: VALUE}}: all keys at one moment, and where the stream goes on from it
GET /stream/TOPIC      server-sent events, one for each record, from now on; ?from=earliest: all that Redis has;
                       ?from=CURSOR or the header Last-Event-ID (which wins): what comes after that event
GET /health            200 when Redis answers
"""

import asyncio
import html
import json
import socket
import string
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import redis.asyncio
import uvicorn
from redis import RedisError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from venice_live import settings as configuration
from venice_live.cursor import Cursor
from venice_live.feed import CLIENT_BYTES, Feeds, offsets
from venice_live.settings import Settings, log

# each may hold some hundred kilobytes: beyond this the memory limit could end all of them
MOST_CLIENTS = 500
# a client that takes nothing for so long is gone, or as good as gone; it may come back with its cursor
SEND_SECONDS = 60.0
STATIC = Path(__file__).parent / "static"
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'"
_TYPES = {"live.js": "text/javascript", "live.css": "text/css"}


class EventStream:
    """Sends chunks as they come. Ends, and ends what makes them, as soon as the client leaves or takes nothing any more."""

    # buffering is what proxies do by default, and events would come late
    HEADERS = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no"))

    def __init__(self, chunks: AsyncGenerator[bytes]):
        self.chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer, gone = asyncio.create_task(self._write(send)), asyncio.create_task(self._gone(receive))
        try:
            await asyncio.wait({writer, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.cancel()
            gone.cancel()
            ended, _ = await asyncio.gather(writer, gone, return_exceptions=True)
            await self.chunks.aclose()
        if isinstance(ended, TimeoutError):
            log(f"a client took nothing for {SEND_SECONDS:.0f} s and was disconnected")
        elif isinstance(ended, Exception):
            raise ended

    async def _write(self, send: Callable[[dict], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(self.HEADERS)})
        async for chunk in self.chunks:
            # returns once the client's connection has room: a slow client holds one chunk, no queue
            await asyncio.wait_for(send({"type": "http.response.body", "body": chunk, "more_body": True}), SEND_SECONDS)

    @staticmethod
    async def _gone(receive: Callable[[], Awaitable[dict]]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


class Server:
    """The routes, over one client of Redis."""

    def __init__(self, settings: Settings):
        self.topics = settings.topics
        pool = redis.asyncio.BlockingConnectionPool(
            **settings.redis,
            decode_responses=True,
            protocol=2,
            socket_timeout=10,
            socket_connect_timeout=3,
            # a reader for each topic that is followed, the rest for who catches up or asks for the state
            max_connections=len(settings.topics) + 16,
            timeout=10,
        )
        self.client = redis.asyncio.Redis(connection_pool=pool)
        self.feeds = Feeds(self.client)
        # a state is held several times over while it is made and sent; pages that all load anew at once wait for each other
        self.one_state = asyncio.Semaphore(1)

    def app(self) -> Starlette:
        routes = [
            Route("/", self.index),
            Route("/live/{topic}", self.page),
            Route("/static/{name}", self.static),
            Route("/topics", self.list),
            Route("/state/{topic}", self.state),
            Route("/stream/{topic}", self.stream),
            Route("/health", self.health),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: self.refuse, RedisError: self.away})

    # ---- pages -----------------------------------------------------------------------------------------------------

    async def index(self, _: Request) -> Response:
        items = "".join(f'<li><a href="/live/{html.escape(t)}">{html.escape(t)}</a></li>' for t in self.topics)
        text = string.Template((STATIC / "index.html").read_text()).substitute(topics=items or "<li>none: live_topics is empty</li>")
        return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})

    async def page(self, request: Request) -> Response:
        self.topic(request)
        return HTMLResponse((STATIC / "live.html").read_text(), headers={"Content-Security-Policy": POLICY})

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _TYPES:
            raise HTTPException(404, f"there is no {name}")
        return Response((STATIC / name).read_text(), media_type=_TYPES[name], headers={"Cache-Control": "no-cache"})

    # ---- data ------------------------------------------------------------------------------------------------------

    def topic(self, request: Request) -> str:
        """The topic that the path names; 404 when it is none that is followed."""
        topic = request.path_params["topic"]
        if topic not in self.topics:
            raise HTTPException(404, f"{topic} is not among live_topics; there: {', '.join(self.topics) or 'nothing'}")
        return topic

    async def list(self, _: Request) -> Response:
        found = []
        for topic in self.topics:
            meta, keys = await self.client.hgetall(f"offsets:{topic}"), await self.client.hlen(f"live:{topic}")
            found.append({"topic": topic, "keys": keys, "partitions": len(offsets(meta))})
        return JSONResponse({"topics": found})

    async def state(self, request: Request) -> Response:
        topic = self.topic(request)
        async with self.one_state:
            # both at one moment: what the cursor has seen is exactly what the state holds
            async with self.client.pipeline(transaction=True) as both:
                meta, state = await both.hgetall(f"offsets:{topic}").hgetall(f"live:{topic}").execute()
            cursor = Cursor(offsets(meta), meta.get("id", ""))
            records = ",".join(f"{json.dumps(key, ensure_ascii=False)}:{value}" for key, value in sorted(state.items()))
            text = f'{{"topic":{json.dumps(topic)},"cursor":{json.dumps(str(cursor))},"records":{{{records}}}}}'
            return Response(text, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def stream(self, request: Request) -> EventStream:
        topic = self.topic(request)
        if self.feeds.followers >= MOST_CLIENTS:
            raise HTTPException(503, f"{MOST_CLIENTS} clients follow topics here already")
        wanted = request.headers.get("last-event-id") or request.query_params.get("from") or ""
        try:
            start = Cursor.parse(wanted) if wanted not in ("", "earliest", "now") else None
        except ValueError as error:
            raise HTTPException(400, f"{error}, nor earliest, nor now") from error
        return EventStream(self.feeds.follow(topic, start, wanted == "earliest"))

    async def health(self, _: Request) -> Response:
        await self.client.ping()
        return JSONResponse({"healthy": True, "clients": self.feeds.followers, "topics": self.topics})

    async def refuse(self, _: Request, error: HTTPException) -> Response:
        return JSONResponse({"message": error.detail}, status_code=error.status_code)

    async def away(self, _: Request, error: RedisError) -> Response:
        return JSONResponse({"healthy": False, "message": f"Redis: {error}"}, status_code=503)


def main() -> None:
    settings = configuration.load()
    log(f"serving {', '.join(settings.topics) or 'no topics: live_topics is empty'} on port {settings.port}")
    config = uvicorn.Config(
        Server(settings).app(),
        host="0.0.0.0",  # noqa: S104 browsers are elsewhere
        port=settings.port,
        log_level="warning",
        access_log=False,
        # streams never end by themselves
        timeout_graceful_shutdown=1,
    )
    listening = config.bind_socket()
    # both are inherited by each connection. The kernel's buffer would else grow to megabytes for a client that is behind
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CLIENT_BYTES)
    # uvicorn closes a connection once all is sent: the kernel ends one whose client takes nothing
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SEND_SECONDS * 1000))
    uvicorn.Server(config).run(sockets=[listening])
