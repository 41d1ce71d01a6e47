"""All that an app may import: its manifest, the context of a request, and the failures it may raise."""

from apps.sdk.app import App, Manifest, load_manifest
from apps.sdk.context import AppContext, ModelChoice
from gateway.client import CallFacts, Queued
from observability.problems import Conflict, InvalidInput, NotAllowed, NotFound, NotSignedIn, Problem, Unavailable
from tenants.context import Actor, DataClass, Role
from tenants.documents import AppDocuments

__all__ = [
    "Actor",
    "App",
    "AppContext",
    "AppDocuments",
    "CallFacts",
    "Conflict",
    "DataClass",
    "InvalidInput",
    "Manifest",
    "ModelChoice",
    "NotAllowed",
    "NotFound",
    "NotSignedIn",
    "Problem",
    "Queued",
    "Role",
    "Unavailable",
    "load_manifest",
]
