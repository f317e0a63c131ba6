"""The sidecar's HTTP/1.1 server held against aiohttp's: the same bytes in, the same requests out.

`python -m bench.http --inputs 1000000`; docs/adr/0012-http-server.md says where the two differ.
"""
