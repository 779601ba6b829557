"""Kept for apps that import `audit` from here; new ones import it from `server`."""

from server.auditing.app_audit import audit

__all__ = ["audit"]
