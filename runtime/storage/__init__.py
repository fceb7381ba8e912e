"""The bundle on disk: its schema, its hashes, its golden request.  Imports ``base`` and ``files``."""
