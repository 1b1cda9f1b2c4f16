"""What a user runs: the command line, one short module and one YAML per job, the HTML report."""
