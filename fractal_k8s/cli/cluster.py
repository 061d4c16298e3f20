"""`fractal-k8s cluster`: GPU nodes, and who uses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import click

from fractal_k8s.cli.common import Command, echo_json, json_option
from fractal_k8s.cli.table import table_lines
from fractal_k8s.cli.where import Where, cluster_options
from fractal_k8s.errors import ForbiddenError

if TYPE_CHECKING:
    from fractal_k8s.backends.kube.inventory import Inventory, Node, Use

_HEAD: Final = ("instance type", "GPU", "nodes", "GPUs", "used", "free", "state")
_COUNTS: Final = (2, 3, 4, 5)
# owners that are shown unless all are asked for
_MOST_USES: Final = 20
_PARTIAL: Final = (
    "only the pods of namespace {} may be seen: more is used and less is free than this shows"
)


@click.command(cls=Command)
@click.option("--all", "whole", is_flag=True, help="Every node and every owner.")
@cluster_options
@json_option
def command(whole: bool, where: Where, as_json: bool) -> None:
    """Show the GPU nodes of a cluster, how many GPUs are free, and who uses them.

    GPUs of nodes that are not ready or cordoned are not free. Pods that CoreWeave tests idle GPUs
    with give way to any other, and take nothing from what is free.

    \b
        fractal-k8s cluster --context cks-wb3
        fractal-k8s cluster --context cks-wb3 --all
    """
    from fractal_k8s.backends.kube.inventory import read_inventory
    from fractal_k8s.backends.kube.rights import VIEWER

    cluster = where.connect()
    try:
        inventory = read_inventory(cluster)
    except ForbiddenError as error:
        raise ForbiddenError(
            f"{error}; ask whoever runs the cluster for the chart's rbac.clusterViewer, or for the "
            f"ClusterRole {VIEWER} of manifests/rbac.yaml"
        ) from None
    if as_json:
        echo_json({"context": cluster.context, **_facts(inventory)})
        return
    click.echo("\n".join(_lines(inventory, whole)))


def _facts(inventory: Inventory) -> dict[str, Any]:
    return {
        "complete": inventory.only is None,
        "nodes": [
            {
                "name": node.name,
                "instance_type": node.instance_type,
                "gpu": node.model,
                "pool": node.pool,
                "gpus": node.gpus,
                "used": inventory.used.get(node.name, 0),
                "free": inventory.free(node),
                "state": node.trouble,
                "taints": [_taint(taint) for taint in node.taints],
            }
            for node in inventory.nodes
        ],
        "users": [
            {
                "namespace": use.namespace,
                "kind": use.kind,
                "name": use.name,
                "sweep": use.sweep,
                "pods": use.pods,
                "gpus": use.gpus,
                "waiting": use.waiting,
                "gives_way": use.gives_way,
            }
            for use in inventory.uses
        ],
    }


def _lines(inventory: Inventory, whole: bool) -> list[str]:
    if not inventory.nodes:
        lines = [f"no node has a GPU; there are {len(inventory.others):,} nodes without"]
    else:
        lines = table_lines([_HEAD, *_groups(inventory)], right=_COUNTS)
    if whole and inventory.nodes:
        lines += ["", *_node_lines(inventory)]
    if inventory.uses:
        lines += ["", *_use_lines(inventory.uses if whole else inventory.uses[:_MOST_USES])]
        lines += [] if whole else _rest_lines(inventory.uses[_MOST_USES:])
    if inventory.only is not None:
        lines += ["", _PARTIAL.format(inventory.only)]
    return lines


def _groups(inventory: Inventory) -> list[tuple[str, ...]]:
    """A row for each instance type and model, and one for all."""
    kinds: dict[tuple[str, str], list[Node]] = {}
    for node in inventory.nodes:
        kinds.setdefault((node.instance_type, node.model), []).append(node)
    rows = [(*kind, *_counts(inventory, nodes)) for kind, nodes in sorted(kinds.items())]
    if len(kinds) > 1:
        rows.append(("all", "", *_counts(inventory, inventory.nodes)))
    return rows


def _counts(inventory: Inventory, nodes: list[Node]) -> tuple[str, ...]:
    """Nodes, GPUs, used, free, and how many nodes are in which state."""
    used = sum(inventory.used.get(node.name, 0) for node in nodes)
    free = sum(inventory.free(node) for node in nodes)
    troubles = Counter(trouble for node in nodes for trouble in node.trouble)
    state = ", ".join(f"{count} {trouble}" for trouble, count in sorted(troubles.items()))
    numbers = (len(nodes), sum(node.gpus for node in nodes), used, free)
    return (*(f"{number:,}" for number in numbers), state or "ready")


def _node_lines(inventory: Inventory) -> Iterable[str]:
    rows = [("node", "instance type", "GPU", "GPUs", "used", "free", "state", "taints")]
    rows += [
        (
            node.name,
            node.instance_type,
            node.model,
            str(node.gpus),
            str(inventory.used.get(node.name, 0)),
            str(inventory.free(node)),
            ", ".join(node.trouble) or "ready",
            ", ".join(_taint(taint) for taint in node.taints),
        )
        for node in inventory.nodes
    ]
    return table_lines(rows, right=(3, 4, 5))


def _taint(taint: dict[str, str]) -> str:
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint['key']}{value}:{taint.get('effect', '')}"


def _use_lines(uses: list[Use]) -> Iterable[str]:
    rows = [("namespace", "owner", "GPUs", "pods", "waiting", "")]
    rows += [
        (
            use.namespace,
            f"{use.kind} {use.name}",
            f"{use.gpus:,}",
            f"{use.pods:,}",
            f"{use.waiting:,}",
            "gives way" if use.gives_way else f"sweep {use.sweep}" if use.sweep else "",
        )
        for use in uses
    ]
    return table_lines(rows, right=(2, 3, 4))


def _rest_lines(uses: list[Use]) -> list[str]:
    if not uses:
        return []
    gpus, waiting = sum(use.gpus for use in uses), sum(use.waiting for use in uses)
    return [f"and {len(uses):,} more with {gpus:,} GPUs, waiting for {waiting:,}; --all shows them"]
