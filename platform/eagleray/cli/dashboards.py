"""`dashboards`: Grafana."""

from __future__ import annotations

import click

from eagleray.cli.shared import InOrder


@click.group(cls=InOrder)
def dashboards() -> None:
    """Grafana dashboards of what the cluster exports."""


@dashboards.command()
@click.option("--url", help="Grafana's address [$EAGLERAY_GRAFANA_URL].")
@click.option("--folder", default="Eagleray", show_default=True, help="Folder, made where there is none.")
@click.option("--datasource", help="Prometheus data source to start with [Grafana's default].")
@click.option("--prometheus-url", help="Makes that data source where there is none.")
def publish(url: str | None, folder: str, datasource: str | None, prometheus_url: str | None) -> None:
    """Put the dashboards into a Grafana (its token: $EAGLERAY_GRAFANA_TOKEN); twice changes nothing."""
    from eagleray.workflows.dashboards import publish

    published = publish(url, None, folder, datasource, prometheus_url=prometheus_url)
    for change in published.changes or ("nothing to change",):
        click.echo(change)
    click.echo(published.url)
