"""Clusters of these tests have a token of their own, which all processes inherit; before Ray is imported."""

import os
import secrets

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
