"""What every store stands on: whole artefacts, parts, shards and the jobs that write them."""
