"""The Studio: pages that show what the parts of a language model do, on the user's own text.

In: tokenizers and models by reference. Out: `app.create_app`, an ASGI
application for one person on this machine, started by `lmworks studio`. A page is one HTML file,
one file of routes and one line in `pages.PAGES`; there is no build and no network but its own
server. No logic lives here: routes call what the commands call.
"""
