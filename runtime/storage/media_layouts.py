"""The axes and the dtype that each kind of media has."""

from mmgen.runtime.storage.schema import Media

LAYOUTS: dict[str, tuple[str, tuple[str | int, ...]]] = {  # dtype; names of axes, or their size where it is given
    "image": ("uint8", ("height", "width", 3)),
    "video": ("uint8", ("frames", "height", "width", 3)),
    "audio": ("float32", ("samples", "channels")),
    "series": ("float32", ("samples", "channels")),
    "text": ("int64", ("length",)),
}


def layouts(media: Media) -> tuple[object, object]:
    """Return the number of axes, the last one's size where it is given, and the dtype: those here, and of the kind."""
    if media.kind not in LAYOUTS:
        return media.dtype, "int64" if media.kind == "codes" else media.dtype
    dtype, axes = LAYOUTS[media.kind]
    if isinstance(axes[-1], str):
        return (len(media.shape), media.dtype), (len(axes), dtype)
    return (len(media.shape), media.shape[-1:], media.dtype), (len(axes), axes[-1:], dtype)


def layout_text(media: Media) -> str:
    """Describe the dtype and the shape that a kind of ``LAYOUTS`` has."""
    dtype, axes = LAYOUTS[media.kind]
    return f"{dtype} ({', '.join(map(str, axes))})"


def misnamed_channels(media: Media) -> str | None:
    """Return ``labels`` or ``units`` that aren't one for each channel of a series; None: they are, or left out."""
    channels = media.shape[-1] if media.kind == "series" else 0
    return next((name for name in ("labels", "units") if len(getattr(media, name)) not in (0, channels)), None)
