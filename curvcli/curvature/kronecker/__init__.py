"""K-FAC and E-KFAC."""
