"""`stmbench report`: what a results database holds, as one page that needs nothing but a browser.

`page.make` reads the store by the same functions as `stmbench leaderboard`, `plot` and `compare`, so the page
says what they say. What is text or a table is in the page's HTML; what is drawn or unfolded in the browser is
in one JSON, beside the plain JavaScript that draws it. It imports no torch.
"""
