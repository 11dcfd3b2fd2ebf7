"""The command ``rarefy view``. Heavy imports live in the handler."""

from __future__ import annotations

import argparse
import sys
from threading import Thread
from typing import TYPE_CHECKING, Any

from rarefy.command_line import OK, OUT_HELP, add_command, add_plugins, allow_plugins, print_result

if TYPE_CHECKING:
    from rarefy.generate.progress import ProgressLine
    from rarefy.shards.store import Store

EVERY_S = 10.0  # between two plain lines while the rows are read


def add_view(commands: Any) -> None:
    """Add the command to the program's commands."""
    command = add_command(commands, "view", _view, "look at a run's images on a local page, and drop or keep them")
    command.add_argument("out", metavar="OUT", help=f"{OUT_HELP}, finished or not")
    command.add_argument("--open", action="store_true", help="open the page in the browser")
    command.add_argument("--port", type=int, default=0, metavar="N", help="port to listen on (default: any free one)")
    text = "address to listen on (default 127.0.0.1: this machine only; others can read the traffic)"
    command.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=text)
    text = "the audit's real images (default: those in the model's folder)"
    command.add_argument("--reference", metavar="DATA", help=text)
    command.add_argument("--model", help="where the run's model folder is now (default: where it was)")
    command.add_argument("--device", default="cpu", help="for trajectories: cpu (default), cuda or cuda:N")
    text = "write one file with up to 2,000 images instead of serving them (default: serve)"
    command.add_argument("--static", metavar="FILE", help=text)
    add_plugins(command)


def _view(arguments: argparse.Namespace) -> int:
    from rarefy.generate.progress import ProgressLine
    from rarefy.shards.store import Store

    store = Store(arguments.out)
    with ProgressLine() as line:
        show = _write_static if arguments.static else _serve
        return show(arguments, store, line)


def _write_static(arguments: argparse.Namespace, store: Store, line: ProgressLine) -> int:
    from rarefy.audit.page.templates import save_page
    from rarefy.view.gallery import make_gallery

    gallery = make_gallery(store, line.stages("view", EVERY_S))
    save_page("static", arguments.static, gallery.page)
    line.close()
    content = {"gallery": arguments.static, "images": gallery.shown, "of": gallery.total}
    text = f"{arguments.static}: {gallery.shown:,} of {gallery.total:,} images"
    return print_result(arguments, content, text)


def _serve(arguments: argparse.Namespace, store: Store, line: ProgressLine) -> int:
    from rarefy.view.app import App, ViewOptions
    from rarefy.view.run import Run
    from rarefy.view.server import ViewServer

    options = ViewOptions(arguments.reference, arguments.model, arguments.device, allow_plugins(arguments))
    app = App(Run(store, line.stages("view", EVERY_S)), options)
    line.close()
    try:
        with ViewServer(app, arguments.host, arguments.port) as server:
            print_result(arguments, {"url": server.url}, f"{server.url}\nCtrl-C ends it")
            arguments.stdout.flush()
            if arguments.open:
                Thread(target=_open, args=(server.url,), daemon=True).start()
            server.serve_forever()
    except KeyboardInterrupt as end:
        if end.args:  # SIGTERM, see rarefy.interrupts
            raise
    finally:
        app.close()
    return OK


def _open(url: str) -> None:
    """Open a page in the browser. A browser in the terminal returns only when it ends."""
    import webbrowser

    if not webbrowser.open(url):
        print("rarefy: there is no browser here; open the address above yourself", file=sys.stderr, flush=True)
