"""The HTTP side of the server: OpenAI's endpoints, errors in OpenAI's form, health and metrics."""

import asyncio
import base64
import functools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from importlib.metadata import version
from typing import Annotated, Any

from anyio import to_thread
from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from app.serving.engine import Picture, failure
from app.serving.errors import ApiError, error_body
from app.serving.keys import BASE, Key
from app.serving.schemas import ImageData, ImageRequest, ImageResponse, Model, ModelList
from app.serving.service import Service, png_bytes
from app.serving.store import unknown_model

MAX_BODY = 64 * 1024
"""Bytes of a request."""
KEEP_ALIVE_SECONDS = 15.0
"""How often a stream without news sends a comment, so that no proxy ends it."""
PATH = "/v1/images/generations"
NO_TOKENS = {"input_tokens": 0, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}, "output_tokens": 0,
             "total_tokens": 0}  # fmt: skip
"""Usage in the form of OpenAI, whose client requires it."""


def create_app(service: Service, *dependencies: Any) -> FastAPI:
    """Return the application, which uvicorn and Ray Serve run. ``dependencies``: of requests for pictures."""
    app = FastAPI(title="hra-diffusion", version=version("hra-diffusion"))
    app.state.service = service
    app.add_middleware(_Limits)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _failed)
    app.add_api_route(
        PATH, _generate, methods=["POST"], response_model=ImageResponse, summary="Draw pictures",
        dependencies=dependencies,
    )  # fmt: skip
    app.add_api_route("/v1/models", _models, response_model=ModelList, summary="The models of this key")
    app.add_api_route("/v1/models/{name}", _model, response_model=Model, summary="One model")
    app.add_api_route("/v1/pictures/{name}", _picture, summary="A picture by its address")
    app.add_api_route("/healthz", _health, summary="200 while pictures are drawn, or else 503")
    app.add_api_route("/metrics", _metrics, summary="Metrics for Prometheus")
    return app


def _service(request: Request) -> Service:
    return request.app.state.service


def require_key(request: Request, authorization: Annotated[str | None, Header()] = None) -> Key:
    """Return the key of a request. Raises ApiError (401)."""
    return _service(request).keys.find(authorization)


async def _generate(asked: ImageRequest, request: Request, key: Annotated[Key, Depends(require_key)]) -> Any:
    service, loop = _service(request), asyncio.get_running_loop()
    news: asyncio.Queue[tuple[int, Image.Image] | None] = asyncio.Queue()

    def tell(number: int, image: Image.Image) -> None:
        loop.call_soon_threadsafe(news.put_nowait, (number, image))

    pictures = await to_thread.run_sync(service.order, asked, key, tell)
    if asked.stream:
        pictures[0].future.add_done_callback(lambda _: loop.call_soon_threadsafe(news.put_nowait, None))
        return StreamingResponse(_stream(pictures[0], news), media_type="text/event-stream")
    try:
        images = await _finished(request, pictures)
    finally:
        for picture in pictures:
            picture.abandoned = True
    if images is None:
        return Response(status_code=499)  # the client has left
    files = [await to_thread.run_sync(png_bytes, image) for image in images]
    if asked.response_format == "url":
        names = [await to_thread.run_sync(service.pictures.add, file) for file in files]
        found = [{"url": str(request.url_for("_picture", name=name))} for name in names]
    else:
        found = [{"b64_json": base64.b64encode(file).decode()} for file in files]
    data = [ImageData(seed=picture.request.seed, **own) for own, picture in zip(found, pictures, strict=True)]
    return ImageResponse(created=int(time.time()), data=data, size=_size(pictures[0]))


async def _finished(request: Request, pictures: list[Picture]) -> list[Image.Image] | None:
    """Return the images, or None as soon as the client hangs up. Raises ApiError for the first that failed."""
    drawn = asyncio.gather(*(asyncio.wrap_future(picture.future) for picture in pictures))
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait((drawn, gone), return_when=asyncio.FIRST_COMPLETED)
        return await drawn if drawn.done() else None
    except Exception as error:
        raise failure(error) from None
    finally:
        drawn.cancel()
        gone.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(picture: Picture, news: asyncio.Queue) -> AsyncIterator[str]:
    """Yield the previews and the picture as events of OpenAI's form."""
    about = {
        "created_at": int(time.time()), "size": _size(picture), "quality": "auto", "background": "auto",
        "output_format": "png", "seed": picture.request.seed,
    }  # fmt: skip
    encode = functools.partial(to_thread.run_sync, png_bytes)
    try:
        while True:
            try:
                told = await asyncio.wait_for(news.get(), KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield ": waiting\n\n"
                continue
            if told is None:
                break
            image = base64.b64encode(await encode(told[1])).decode()
            yield _event("image_generation.partial_image", about, partial_image_index=told[0], b64_json=image)
        try:
            image = base64.b64encode(await encode(picture.future.result())).decode()
        except Exception as error:
            refused = failure(error)
            yield f"event: error\ndata: {json.dumps(error_body(refused.code, refused.message))}\n\n"
            return
        yield _event("image_generation.completed", about, b64_json=image, usage=NO_TOKENS)
    finally:
        picture.abandoned = True


def _event(kind: str, *parts: dict[str, Any], **more: Any) -> str:
    data: dict[str, Any] = {"type": kind}
    for part in (*parts, more):
        data |= part
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


def _size(picture: Picture) -> str:
    return f"{picture.settings.width}x{picture.settings.height}"


def _models(request: Request, key: Annotated[Key, Depends(require_key)]) -> ModelList:
    own = [listed for listed in _service(request).store.list() if key.may_use(listed.name) and listed.name != BASE]
    adapters = [Model(id=listed.name, created=listed.created, subject=listed.subject) for listed in own]
    return ModelList(data=[Model(id=BASE, created=0), *adapters])


def _model(name: str, request: Request, key: Annotated[Key, Depends(require_key)]) -> Model:
    found = [model for model in _models(request, key).data if model.id == name]
    if not found:
        raise unknown_model(name)
    return found[0]


def _picture(name: str, request: Request) -> Response:
    if (file := _service(request).pictures.find(name)) is None:
        raise ApiError(404, "picture_not_found", "there is no such picture; pictures stay for an hour")
    return FileResponse(file, media_type="image/png")


async def _health(request: Request) -> Response:
    alive = _service(request).engine.is_alive
    return JSONResponse({"status": "ok" if alive else "stopping"}, 200 if alive else 503)


async def _metrics(request: Request) -> Response:
    return Response(generate_latest(_service(request).engine.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _refused(request: Request, error: Any) -> Response:
    return JSONResponse(error_body(error.code, error.message), error.status, error.headers)


async def _invalid(request: Request, error: Any) -> Response:
    """Answer an invalid body with its first problem; what was sent is not repeated."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body")[:100]
    return await _refused(request, ApiError(400, "invalid_value", f"{field or 'body'}: {first['msg']}"))


async def _failed(request: Request, error: Any) -> Response:
    return await _refused(request, ApiError(error.status_code, "http_error", str(error.detail)))


Message = MutableMapping[str, Any]


class _Limits:
    """Middleware that ends the reading of a body that is too large, counts answers, and forbids caches to keep them."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(413, f"a request may have {MAX_BODY} bytes")
            return message

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                if scope["path"] == PATH:
                    scope["app"].state.service.engine.metrics.responses.labels(message["status"]).inc()
                own = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        await self.app(scope, limited, answer)
