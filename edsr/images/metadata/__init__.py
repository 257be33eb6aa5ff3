"""All that an image file holds besides pixels: listed when it is read, and then kept, converted or named.

One scanner for each container (`png`, `jpeg`, `webp`, `tiff`, `heif`, `gif`) yields `entries.Entry`s; `inventory` adds
up what they say together, above all the orientation; `transfer` decides what becomes of each entry in a format that is
written.
"""
