"""Links lead somewhere: to a file of the repository and a heading in it, or to a whole address."""

from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import PAGES, ROOT, Page


def fault(page: Page, link: str) -> str | None:
    """What is wrong with a link, if anything is."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        whole = parts.scheme in ("http", "https") and parts.hostname and " " not in link
        return None if whole else "is no whole http(s) address"
    target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
    if not target.is_relative_to(ROOT) or not target.exists():
        return "leads to no file of the repository"
    if parts.fragment and parts.fragment not in Page(target).anchors():
        return f"{target.name} has no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    faults = [f"{link}: {said}" for link in page.links() if (said := fault(page, link))]
    assert not faults


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("docs/none.md", "leads to no file of the repository"),
        ("../../etc/passwd", "leads to no file of the repository"),
        ("docs/jobs.md#no-such-field", "jobs.md has no such heading"),
        ("#nothing-here", "README.md has no such heading"),
        ("ftp://example.org/x", "is no whole http(s) address"),
        ("https:///x", "is no whole http(s) address"),
        ("docs/jobs.md#trainadapter", None),
        ("https://arxiv.org/abs/2404.15159", None),
    ],
)
def test_a_link_that_leads_nowhere_is_found(link: str, said: str | None) -> None:
    assert fault(Page(ROOT / "README.md"), link) == said
