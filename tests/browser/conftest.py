"""One browser for all pages, and an ear for what a page asks for or complains about."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
Opening = Callable[..., AbstractContextManager[Page]]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        # A machine without a browser; in CI the skip is an error (ATTNLENS_REQUIRE_ALL).
        pytest.skip("chromium is missing: run make test as root or install it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def opening(browser: Browser) -> Opening:
    """Opens a file with the network cut off; at the end it has asked for nothing else and said nothing."""

    @contextmanager
    def opened(address: str, **look) -> Iterator[Page]:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | look, offline=True)
        page, heard = context.new_page(), list[str]()
        page.set_default_timeout(5000)
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on(
            "request", lambda request: heard.append(request.url) if request.url[:5] not in ("data:", "about") else None
        )
        page.goto(address)
        yield page
        assert heard == [address], "one file, no console message, no request"
        context.close()

    return opened


def serious(page: Page) -> list[str]:
    """What axe finds that keeps people out."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [violation["id"] for violation in found if violation["impact"] in ("serious", "critical")]
