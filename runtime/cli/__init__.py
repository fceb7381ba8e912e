"""The command ``mmgen``.  Imports all rooms; no room imports it."""
