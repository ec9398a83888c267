"""``groundglass serve``: predictions over HTTP."""

from typing import Annotated

from typer import Option

from groundglass.cli.options import BundlePath, Device, with_options
from groundglass.errors import ServiceError
from groundglass.serving.settings import Settings


@with_options(Settings)
def serve(
    settings: Settings,
    bundle: BundlePath = None,
    device: Device = "cpu",
    open_page: Annotated[bool, Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Predictions for uploaded slices over HTTP, and a page to view them. Research use only, never a diagnosis.

    Says where it is on standard error, and logs JSON lines to standard output. SIGTERM finishes what was accepted.
    """
    try:
        from groundglass.serving import server
    except ModuleNotFoundError as error:
        hint = "comes with `pip install '.[serve]'` in a clone of groundglass"
        raise ServiceError(f"serving needs {error.name}, which {hint}") from error
    from groundglass.inference.bundle import Bundle

    server.serve(Bundle.open(bundle, 1, device), settings, open_page=open_page)
