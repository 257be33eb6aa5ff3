"""Networks in the files of other runtimes."""
