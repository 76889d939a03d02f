"""Fetching a file over HTTP(S) within a time limit."""

import http.client
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field

from .. import __version__
from ..errors import DataMissingError

CHUNK = 1 << 16
LARGEST = 256 << 20


class DownloadError(DataMissingError):
    """A file could not be downloaded, or not in the state it should be in."""


@dataclass
class _Transfer:
    """What the reading thread passes to the main thread."""

    answered: threading.Event = field(default_factory=threading.Event)
    content: bytes | None = None
    problem: str | None = None


def _receive(url: str, timeout: float, transfer: _Transfer) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": f"caryatid/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            transfer.answered.set()
            content = bytearray()
            while part := response.read(CHUNK):
                content += part
                if len(content) > LARGEST:
                    raise OverflowError(f"larger than {LARGEST >> 20} MiB")
            transfer.content = bytes(content)
    except urllib.error.HTTPError as error:
        transfer.problem = f"HTTP {error.code} {error.reason}"
    except urllib.error.URLError as error:
        transfer.problem = str(error.reason)
    except (OSError, http.client.HTTPException, OverflowError) as error:
        transfer.problem = str(error) or type(error).__name__
    finally:
        transfer.answered.set()


def download(url: str, *, connect_timeout: float, total_timeout: float, remedy: str) -> bytes:
    """The content at `url`.

    The transfer runs in a thread of its own, because neither a name server that does not answer nor a server
    that sends a byte now and then can be timed out otherwise.

    Args:
        url: http or https address.
        connect_timeout: seconds until the server has begun to answer, name look-up included.
        total_timeout: seconds until the whole file is here.
        remedy: for the error message.

    Raises:
        DownloadError: no content within the limits, or an error from the server or the network.
    """
    transfer = _Transfer()
    thread = threading.Thread(target=_receive, args=(url, connect_timeout, transfer), daemon=True)
    thread.start()
    if not transfer.answered.wait(connect_timeout):
        raise DownloadError(f"no answer within {connect_timeout:g} s", where=url, remedy=remedy)
    thread.join(total_timeout)
    if thread.is_alive():
        raise DownloadError(f"not finished within {total_timeout:g} s", where=url, remedy=remedy)
    if transfer.content is None:
        raise DownloadError(f"download failed ({transfer.problem})", where=url, remedy=remedy)
    return transfer.content
