"""This project's networks in other projects' libraries, each of them an extra.

`edsr.integrations.hub` is for the Hugging Face Hub, `edsr.integrations.spandrel` for what is built on spandrel.
"""
