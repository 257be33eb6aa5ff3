"""Files at URLs: in buckets of S3 and Google Cloud Storage, behind HTTP, or in memory; fetched, stored and listed."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .faults import exists_message as exists_message
    from .faults import full_disk as full_disk
    from .listing import Listing as Listing
    from .listing import list_objects as list_objects
    from .listing import listing_of as listing_of
    from .transfer import check_store as check_store
    from .transfer import fetch as fetch
    from .transfer import is_taken as is_taken
    from .transfer import size_of as size_of
    from .transfer import store as store
    from .url import Place as Place
    from .url import Url as Url
    from .url import as_path as as_path
    from .url import identity as identity
    from .url import is_url as is_url
    from .url import place_of as place_of
    from .url import why_not_a_path as why_not_a_path

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "faults": ["exists_message", "full_disk"],
        "listing": ["Listing", "list_objects", "listing_of"],
        "transfer": ["check_store", "fetch", "is_taken", "size_of", "store"],
        "url": ["Place", "Url", "as_path", "identity", "is_url", "place_of", "why_not_a_path"],
    },
)
