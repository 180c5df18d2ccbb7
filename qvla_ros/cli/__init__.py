"""``qvla <verb>``: one verb, one file."""
