"""What goes wrong with storage, as one line that says what to do, and holds no secrets.

The libraries below have errors of their own, whose messages may hold whole addresses, signatures included. So they are
told apart by their classes' names and by servers' codes, without any of these libraries being imported.
"""

import errno
import re
from collections.abc import Iterator

from edsr.errors import ExistsError, ImageError

from .url import Url

PACKAGES = {
    "s3": "s3fs: pip install 'edsr-triton[cloud]'",
    "gs": "gcsfs: pip install gcsfs",
    "http": "aiohttp: pip install 'edsr-triton[cloud]'",
    "https": "aiohttp: pip install 'edsr-triton[cloud]'",
    "memory": "fsspec: pip install 'edsr-triton[cloud]'",
}
"""What a scheme needs."""
_CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true for public buckets",
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS; FSSPEC_GS_TOKEN=anon "
    "for public buckets",
}
_NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "DefaultCredentialsError",
    "RefreshError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
)
_REFUSED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired")
_ELSEWHERE = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301")
_LOST = (
    "ClientPayloadError",
    "ConnectionError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ResponseParserError",
    "ResponseStreamingError",
    "ServerDisconnectedError",
    "ClientOSError",
    "FSTimeoutError",
    "TimeoutError",
    "OSError:EREMOTEIO",
)
_UNREACHABLE = ("ClientConnectorError", "EndpointConnectionError", "ConnectTimeoutError", "gaierror", "SSLError")


def is_passing(error: BaseException) -> bool:
    """Whether the same may go well when it is tried again: a connection was lost, or a server is busy."""
    names = _names(error)
    if any(name in names for name in (*_NO_CREDENTIALS, *_UNREACHABLE)):
        return False
    return any(name in names for name in _LOST) or _status(error) in (429, 500, 502, 503, 504) or _is_io(error)


def explain(error: Exception, url: Url, writing: bool = False) -> ImageError:
    """The error of what was tried at a URL."""
    names, code, status = _names(error), _code(error), _status(error)
    where = f"{url}: "
    if isinstance(error, ImageError):
        return error
    if isinstance(error, ImportError):
        return ImageError(f"{where}{url.scheme}:// needs the package {PACKAGES[url.scheme]}")
    if any(name in names for name in _NO_CREDENTIALS):
        return ImageError(f"{where}no credentials; {_CREDENTIALS.get(url.scheme, 'give some')}")
    if code in _REFUSED:
        return ImageError(f"{where}the credentials are refused ({code}); renew them, or choose others")
    if code == "NoSuchBucket" or (writing and (isinstance(error, FileNotFoundError) or status == 404)):
        return ImageError(f"{where}there is no bucket {url.host}; look at its name, or create it first")
    if isinstance(error, FileExistsError):
        return ExistsError(exists_message(url))
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return ImageError(f"{where}no such object; look at its name")
    if isinstance(error, PermissionError) or status in (401, 403):
        what = "written" if writing else "read"
        return ImageError(f"{where}may not be {what} with these credentials ({code or status or 'permission denied'})")
    if code in _ELSEWHERE:
        return ImageError(f"{where}the bucket is in another region ({code}); set AWS_DEFAULT_REGION to its own")
    if "ParamValidationError" in names:
        return ImageError(f"{where}no name that a bucket or an object can have; look at it")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return full_disk(url)
    if any(name in names for name in _UNREACHABLE):
        server = url.host.rpartition("@")[2] if url.scheme in ("http", "https") else "the service"
        return ImageError(f"{where}{server} cannot be reached; look at the network and the address")
    if is_passing(error):
        why = f"the server answers {status or code}" if status or code else "the connection was lost"
        return ImageError(f"{where}{why}, again and again; try once more later")
    return ImageError(f"{where}cannot be {'written' if writing else 'read'} ({code or status or _line(error, url)})")


def full_disk(url: Url) -> ImageError:
    """The error of an object, or of a result, that finds no room as a temporary file."""
    return ImageError(f"{url}: no room for its temporary file; set TMPDIR to a folder on a larger disk")


def exists_message(place: object) -> str:
    """What is said of an output that is there and may not be replaced."""
    from edsr.wording import option

    return f"{place}: exists; add {option('overwrite')} to replace it"


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    for _ in range(10):
        if current is None:
            return
        yield current
        current = current.__cause__ or current.__context__


def _names(error: BaseException) -> set[str]:
    """The names of the classes of an error, and of those that it comes from."""
    return {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}


def _code(error: BaseException) -> str:
    """What S3 calls the error, or ""."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _status(error: BaseException) -> int | None:
    """The status of an HTTP server's answer."""
    for one in _chain(error):
        name = {"ClientResponseError": "status", "HttpError": "code"}.get(type(one).__name__)
        if name and str(value := getattr(one, name, "")).isdigit():
            return int(value)
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None


def _is_io(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO))


def _line(error: Exception, url: Url) -> str:
    """An unknown error's own words, in short."""
    text = str(error).replace(url.address, str(url)).strip().partition("\n")[0]
    text = re.sub(r"//[^/\s]*@|\?[^\s'\"]+", lambda found: "//" if found[0][0] == "/" else "?...", text)
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
