"""The app as a web application: Gradio's page, and beside it the routes that Gradio has no part in.

    /                          the page
    /image/KEY/SIDE            one picture of a pair or of an upload, PNG; keys that are not known are 404
    /decisions.jsonl           the decision log
    /pages/dataset, /pages/run what `pairs stats --html` and a run's report show, as pages without a script

No route takes a path. Uploads live in a folder of their own that goes with the process.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from vlm_contextrl.app.catalogue import Catalogue, cache_folder, open_catalogue
from vlm_contextrl.app.chooser import Chooser
from vlm_contextrl.app.decisions import DecisionLog
from vlm_contextrl.app.pictures import Pictures
from vlm_contextrl.app.reports import Balance, Reports
from vlm_contextrl.app.review import Review
from vlm_contextrl.app.settings import MAX_UPLOAD, AppSettings, is_loopback, user_name
from vlm_contextrl.errors import ContextRLError, InputError, MissingExtraError

if TYPE_CHECKING:
    from fastapi import FastAPI

TITLE = "vlm_contextrl"
QUEUE_SIZE = 32
KEPT_UPLOADS_S = 3600


@dataclass
class Room:
    """What all visitors of one app share."""

    settings: AppSettings
    catalogue: Catalogue
    log: DecisionLog
    review: Review
    pictures: Pictures
    chooser: Chooser | None
    reports: Reports
    stop: threading.Event

    def start(self) -> None:
        """What takes long, beside everything else: look at all pixels, load the model."""

        def examine() -> None:
            self.catalogue.examine(cache_folder(), self.stop.is_set)

        def load() -> None:
            with suppress(ContextRLError):  # said when the model is asked
                if self.chooser:
                    self.chooser.load()

        for work, after_s in ((examine, 3), (load, 10)):  # the first page comes first
            timer = threading.Timer(after_s, work)
            timer.daemon = True
            timer.start()

    def close(self) -> None:
        """End the threads."""
        self.stop.set()
        self.pictures.close()


def open_room(settings: AppSettings, balance: Balance | None = None) -> Room:
    """Dataset and decisions, opened. Errors of the user's (InputError) come from here, before a server is started."""
    catalogue = open_catalogue(settings.pairs, licence=settings.licence)
    log = DecisionLog(settings.decisions_folder, settings.pairs, catalogue.content_hash)
    return Room(
        settings,
        catalogue,
        log,
        Review(catalogue, log),
        Pictures(catalogue),
        Chooser(settings.model, settings.adapters) if settings.model else None,
        Reports(catalogue, settings.run, balance),
        threading.Event(),
    )


def application(room: Room) -> Any:
    """The ASGI application. Raises MissingExtraError without Gradio."""
    _set_environment()
    try:
        import gradio as gr
    except ImportError as error:
        raise MissingExtraError("the app needs Gradio: pip install 'vlm-contextrl[app]'") from error
    from fastapi import FastAPI

    from vlm_contextrl.app.guard import Guard

    web = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_routes(web, room)

    async def mounted() -> Any:
        demo = _build(room)
        gr.mount_gradio_app(
            web,
            demo,
            "/",
            server_name=room.settings.host,
            server_port=room.settings.port,
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=MAX_UPLOAD,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            theme=_theme(gr),
            css=_page("app.css"),
            head=f"<script>{_page('app.js')}</script>",
            favicon_path=str(files("vlm_contextrl.app") / "pages" / "icon.svg"),
        )
        return demo

    # Inside a loop: for every lock that it makes outside one, Gradio would make a loop, too, and leave it open.
    with ThreadPoolExecutor(max_workers=1) as thread:
        demo = thread.submit(asyncio.run, mounted()).result()
    # A mounted app counts as not launched, and Gradio 6.31 then takes any path of this machine for an upload.
    demo.has_launched = True
    return Guard(web, host=room.settings.host, password=room.settings.password)


def serve(
    settings: AppSettings, ready: Callable[[str], None] = lambda address: None, balance: Balance | None = None
) -> None:
    """Run the app until it is interrupted. ready: is told the address once it answers. balance: see `Reports`."""
    _check_address(settings)
    room = open_room(settings, balance)
    try:
        server = _server(application(room), settings, ready)
        room.start()
        server.run()
    finally:
        room.close()


def _build(room: Room) -> Any:
    import gradio as gr

    from vlm_contextrl.app.report_tabs import dataset_tab, run_tab
    from vlm_contextrl.app.review_tab import ReviewTab
    from vlm_contextrl.app.selection_tab import SelectionTab

    name = room.settings.pairs.resolve().name
    annotator = user_name() if is_loopback(room.settings.host) else ""
    with gr.Blocks(
        title=f"{name} \N{MIDDLE DOT} {TITLE}", analytics_enabled=False, delete_cache=(600, KEPT_UPLOADS_S)
    ) as demo:
        gr.HTML(f'<h1 class="app-title">{escape(name)}</h1>', apply_default_css=False)
        with gr.Tabs():
            with gr.Tab("Review", id="review"):
                review = ReviewTab(room.review, room.pictures, annotator)
            with gr.Tab("Selection", id="selection") as selection:
                SelectionTab(selection, room.review, review.session, room.pictures, room.chooser)
            with gr.Tab("Dataset", id="dataset") as dataset:
                dataset_tab(dataset, room.reports)
            with gr.Tab("Run", id="run") as run:
                run_tab(run, room.reports)
        review.load(demo)
    demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=4)
    return demo


def _add_routes(web: FastAPI, room: Room) -> None:
    from fastapi import Response
    from fastapi.responses import PlainTextResponse

    @web.get("/image/{key}/{side}")
    def image(key: str, side: str) -> Response:
        found = room.pictures.png(key, side)
        if found is None:
            return PlainTextResponse("no such picture", 404)
        return Response(found, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    @web.get("/decisions.jsonl")
    def decisions() -> Response:
        lines = room.log.file.read_bytes() if room.log.file.exists() else b""
        headers = {
            "Content-Disposition": 'attachment; filename="decisions.jsonl"',
            "Cache-Control": "no-store",
        }
        return Response(lines[: lines.rfind(b"\n") + 1], media_type="application/jsonl", headers=headers)

    def page(make: Callable[[], str]) -> Callable[[], Response]:
        return lambda: Response(make(), media_type="text/html", headers={"Cache-Control": "no-store"})

    web.get("/pages/dataset")(page(room.reports.dataset))
    web.get("/pages/run")(page(room.reports.run_report))


def _set_environment() -> None:
    """Before Gradio is imported: it reads these once."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if "GRADIO_TEMP_DIR" not in os.environ:
        uploads = tempfile.mkdtemp(prefix="vlm-contextrl-uploads-")
        os.environ["GRADIO_TEMP_DIR"] = uploads
        atexit.register(shutil.rmtree, uploads, ignore_errors=True)


def _theme(gr: Any) -> Any:
    """System fonts, since Gradio's default ones would be fetched; blue, on which white text can be read."""
    return gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800")


def _page(name: str) -> str:
    return (files("vlm_contextrl.app") / "pages" / name).read_text(encoding="utf-8")


def _check_address(settings: AppSettings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((settings.host.strip("[]"), settings.port))
        except OSError as error:
            raise InputError(
                f"--host {settings.host} --port {settings.port}: cannot be listened on ({error.strerror}); name another port"
            ) from error


def _server(app: Any, settings: AppSettings, ready: Callable[[str], None]) -> Any:
    """uvicorn that says when it answers."""
    import uvicorn

    host = settings.host.strip("[]")
    address = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"

    class Server(uvicorn.Server):
        async def startup(self, *arguments: Any, **options: Any) -> None:
            await super().startup(*arguments, **options)
            if self.started:
                ready(address)

    return Server(
        uvicorn.Config(
            app, host, settings.port, log_level="warning", server_header=False, timeout_graceful_shutdown=2
        )
    )
