"""The program of the reranking of what a run finds."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import PyTree

from rag_jax.data.batches import round_up
from rag_jax.models.io.reranker import describe_head
from rag_jax.models.io.sizes import find_sizes
from rag_jax.planning.abstract import describe_model
from rag_jax.planning.planner import Planner
from rag_jax.retrieval.rerank import BATCH_SIZE, choose_length, score_batch
from rag_jax.runtime.sharding import HEAD_RULES, abstract_params
from rag_jax.search_config import RerankConfig


def compile_reranking(
    planner: Planner, settings: RerankConfig, asked: Mapping[str, int]
) -> list[PyTree]:
    """Plans the reranking of what is found, at the largest shape.

    Args:
        asked: number of questions that are reranked, by the stage.

    Returns:
        The reranker's parameters, which stay in memory; an empty list without a reranker.
    """
    if settings.name is None:
        return []
    config, dtype = find_sizes(settings.name), jnp.dtype(settings.dtype)
    model = describe_model(config, planner.mesh, dtype=dtype)
    head, params = describe_head(config, dtype, asked=settings.asks)
    params = model.params | abstract_params(params, planner.mesh, HEAD_RULES)
    rows = round_up(BATCH_SIZE, planner.mesh.shape["data"])
    width = choose_length(config.max_length, settings.max_length)
    runs = {stage: -(-count * settings.depth // BATCH_SIZE) for stage, count in asked.items()}
    name, sizes = f"rerank pairs {rows} x {width}", {"B": rows, "T": width}
    planner.compile(name, score_batch, model.model, head, params, sizes=sizes, runs=runs)
    return [params]
