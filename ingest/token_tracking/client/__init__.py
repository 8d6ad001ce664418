"""From a call to the commit: requests, the writer thread, the spool, the connection."""
