"""Many runs on equal terms: methods against each other, over seeds and tasks, with every finished run kept."""
