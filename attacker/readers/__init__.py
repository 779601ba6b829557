"""Images read off a payload without a search: closed forms, planted layers, regressions."""
