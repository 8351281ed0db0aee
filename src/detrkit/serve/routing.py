"""Adapts requests to the routes: a path prefix of a proxy, and HEAD."""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def route_path(scope: Scope) -> str:
    """Return the path of a request without the prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class RootPathMiddleware:
    """Serves the application below a path prefix, which a proxy removes from the path or not."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with the prefix in its path and in `root_path`, as ASGI defines them."""
        if scope["type"] != "http" or not self.root_path:
            await self.app(scope, receive, send)
        elif scope["path"] == self.root_path:
            await RedirectResponse(f"{self.root_path}/", 308)(scope, receive, send)
        else:
            has_prefix = scope["path"].startswith(f"{self.root_path}/")
            path = scope["path"] if has_prefix else self.root_path + scope["path"]
            await self.app({**scope, "path": path, "root_path": self.root_path}, receive, send)


class HeadMiddleware:
    """Answers HEAD as GET without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, send_without_body)
