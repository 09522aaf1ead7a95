"""The two pages that need no token: the one that asks for it, and the one that takes it out of the address."""

from __future__ import annotations

from html import escape

STYLE = """<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 34rem; margin: 15vh auto 0; padding: 0 1.5rem }
form { display: flex; gap: .5rem; margin: 1.5rem 0 }
input { flex: 1; min-width: 0; font: inherit; padding: .5rem .7rem; border: 1px solid #8888; border-radius: .5rem }
button { font: inherit; padding: .5rem 1rem; border: 0; border-radius: .5rem; background: #3b6fb6; color: #fff }
code { background: #8882; padding: .1rem .3rem; border-radius: .3rem; white-space: nowrap }
.wrong { color: #d33 }
</style>"""
HEAD = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Basiscope</title>'
VIEWPORT = '<meta name="viewport" content="width=device-width, initial-scale=1">'


def asking_page(port: int, is_wrong: bool) -> str:
    """Says where the token is, and takes it; is_wrong: after one that is not this app's."""
    wrong = '<p class="wrong">This is not the token of the app that is open now.</p>' if is_wrong else ""
    return f"""{HEAD}{VIEWPORT}{STYLE}</head><body>
<h1>Basiscope</h1>
<p>This app opens with the address that <code>basiscope app</code> printed when it was started: it ends in a token,
which keeps other users of the machine, and other pages in this browser, out.</p>
{wrong}<form method="post"><input name="token" type="password" placeholder="Paste the address or its token"
 aria-label="The address or its token" autocomplete="off" autofocus required><button>Open</button></form>
<p>No longer at hand? <code>basiscope app --port {port}</code>, given again with the same workspace by the user who
started it, prints the address of the app that is open.</p>
</body></html>"""


def leading_page(to: str) -> str:
    """Goes on to an address without the token. A redirect would do, but a browser that has come from another site
    brings a strict cookie only where a page of our own sends it on."""
    return f'{HEAD}<meta http-equiv="refresh" content="0;url={escape(to)}"></head><body></body></html>'
