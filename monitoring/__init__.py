"""What people look at: Grafana's dashboards, written into the chart by `make generate`."""
