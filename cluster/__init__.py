"""Where jobs run: a Ray on this machine, a Ray that runs already, Slurm, or Kubernetes through KubeRay."""
