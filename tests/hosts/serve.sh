serve_run() { die "not yet"; }
serve_connect() { die "not yet"; }
