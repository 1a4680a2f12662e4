"""``zoo serve``: a small Hub on this machine, for the real clients, pull and push.

``blobs`` files by content · ``history`` repositories, commits, tags · ``folders`` what lies in the
served folder · ``access`` who may see what · ``reading`` and ``writing`` the endpoints · ``app``
all of it as one ASGI application · ``start`` the verb
"""
