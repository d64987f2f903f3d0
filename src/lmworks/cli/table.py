"""All commands: what they are called, where they live, and one line of help.

`stage:` entries are made from the stage's config; the others name a click command. The table is
literal so that `lmworks --help` imports nothing.
"""

from __future__ import annotations

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": (
        "lmworks.cli.quickstart:command",
        "From raw text to a served model, with a report, in one command.",
    ),
    "chat": ("lmworks.cli.chat:command", "Talk to a model in the terminal."),
    "generate": ("lmworks.cli.generate:command", "Continue a text with a model."),
    "serve": ("lmworks.cli.serve:command", "Serve models: OpenAI's API and a chat page."),
    "models list": (
        "lmworks.cli.models:list_command",
        "What a running server has: state, memory, context, speed.",
    ),
    "models load": ("lmworks.cli.models:load_command", "Load a model of a running server."),
    "models unload": ("lmworks.cli.models:unload_command", "Unload a model of a running server."),
    "embed": ("lmworks.cli.embed:command", "Vectors of texts, as .npy or JSON lines."),
    "deploy": (
        "lmworks.cli.deploy:command",
        "Files to run a model in Docker, Compose or Kubernetes.",
    ),
    "studio": (
        "lmworks.cli.studio:command",
        "Pages that show what tokenizers and models do on your text.",
    ),
    "run": ("lmworks.cli.run:command", "Run a recipe: several stages from one YAML file."),
    "show": ("lmworks.cli.show:command", "What made an artifact, from what, with which figures."),
    "systems": ("lmworks.cli.systems:command", "The 88 systems and how far each one is."),
    "doctor": ("lmworks.cli.doctor:command", "What this machine has and what will be slow on it."),
    "data build": (
        "stage:lmworks.data.corpus:build_corpus",
        "A corpus from a folder: read, filter, deduplicate, split.",
    ),
    "data parallel": (
        "stage:lmworks.data.parallel:build_parallel",
        "Sentence pairs by language out of catalogues of translations.",
    ),
    "data questions": (
        "stage:lmworks.data.questions:draw_questions",
        "Question and answer pairs drawn from a corpus.",
    ),
    "data preferences": (
        "stage:lmworks.data.preferences:draw_preferences",
        "Pairs of answers of which the better one is known, out of questions.",
    ),
    "data needles": (
        "stage:lmworks.data.needles:plant_needles",
        "Put a sentence to find into every passage of a corpus.",
    ),
    "data feedback": (
        "stage:lmworks.serving.feedback.stage:collect_feedback",
        "Thumbs and corrections that a server collected, filtered, as data to train on.",
    ),
    "data why": ("lmworks.cli.data_why:command", "Why a document is not in a corpus."),
    "tokenizer train": (
        "stage:lmworks.tokenizers.train:train_tokenizer",
        "Learn a vocabulary: BPE, Unigram or WordPiece.",
    ),
    "tokenizer extend": (
        "stage:lmworks.tokenizers.extend:extend_tokenizer",
        "Learn more tokens from the text of a field; the old ids stay.",
    ),
    "tokenizer encode": ("lmworks.cli.encode:command", "Show how a tokenizer cuts a text."),
    "tokenizer convert": (
        "lmworks.cli.tokenizer_convert:command",
        "Write a tokenizer in another format, and check that it stayed the same.",
    ),
    "tokenizer compare": (
        "lmworks.cli.tokenizer_compare:command",
        "Tokenizers side by side on your text, and what changes from one to another.",
    ),
    "tokenizer budget": (
        "lmworks.cli.tokenizer_budget:command",
        "What a chat request costs in tokens, part by part, and how it fits.",
    ),
    "tokenizer pack": (
        "lmworks.cli.tokenizer_pack:command",
        "Compare ways to pack a corpus into sequences of one length.",
    ),
    "train pretrain": (
        "stage:lmworks.training.pretrain:pretrain",
        "Train a decoder from scratch: attention, or any pattern of layers.",
    ),
    "train estimate": (
        "lmworks.cli.train_estimate:command",
        "How much memory a pre-training takes, and what to lower if it does not fit.",
    ),
    "train tune": (
        "lmworks.cli.train_tune:command",
        "Find rows at a time, threads and the like with which a pre-training is fastest.",
    ),
    "train dry-run": (
        "stage:lmworks.training.distributed.dry_run:dry_run",
        "Rehearse a parallel plan here; forecast memory and time where it is to run.",
    ),
    "train search": (
        "stage:lmworks.training.architecture_search:search_architecture",
        "Find the pattern of layers that learns best within a time and a memory.",
    ),
    "train adapt": (
        "stage:lmworks.training.adapt:adapt",
        "Go on training a model on the text of a field, without it forgetting the rest.",
    ),
    "train sft": (
        "stage:lmworks.training.sft:sft",
        "Fine-tune a model on conversations.",
    ),
    "train prefer": (
        "stage:lmworks.training.prefer:prefer",
        "Teach a model which answers are better: DPO, IPO, SimPO, ORPO, KTO.",
    ),
    "train reward": (
        "stage:lmworks.training.reward:reward",
        "Train a model that tells how good an answer is.",
    ),
    "train continue": (
        "lmworks.cli.train_continue:command",
        "Learn task after task, and serve only what passed its gates.",
    ),
    "train round": (
        "stage:lmworks.evaluation.continual.round:continual_round",
        "One task more, held to earlier ones, with gates: a round of train continue.",
    ),
    "train distill": (
        "stage:lmworks.training.distill:distill",
        "Teach a small model what a large one holds likely.",
    ),
    "train embed": (
        "stage:lmworks.training.embed:embed",
        "Train an encoder whose vectors are near for texts that belong together.",
    ),
    "eval seeds": (
        "stage:lmworks.evaluation.seeds:compare_seeds",
        "Ways of training side by side, each over its seeds, with paired intervals.",
    ),
    "eval tuning": (
        "stage:lmworks.evaluation.tuning:compare_tuned",
        "What tuning gained in its field and what it cost elsewhere, against the base.",
    ),
    "eval bits-per-byte": (
        "stage:lmworks.evaluation.bits_per_byte:evaluate",
        "Compare models on held-out text, with intervals.",
    ),
    "eval tokenizers": (
        "stage:lmworks.evaluation.compare_tokenizers:compare_tokenizers",
        "Tokenizers side by side on held-out text, as a report.",
    ),
    "eval preferences": (
        "stage:lmworks.evaluation.preferences:eval_preferences",
        "How often models agree with held-out preferences, and what they go by.",
    ),
    "eval speculation": (
        "stage:lmworks.evaluation.speculation:speculation",
        "Whether guessing tokens pays here: guesses kept, tokens a step, speed-up.",
    ),
    "eval merge-search": (
        "stage:lmworks.evaluation.merge_search:merge_search",
        "How to merge models so that held-out text is told best; writes the recipe.",
    ),
    "eval needle": (
        "stage:lmworks.evaluation.needle:needle",
        "Whether a model finds a sentence in a long text, by length and depth.",
    ),
    "eval position-perplexity": (
        "stage:lmworks.evaluation.position_perplexity:position_perplexity",
        "How well a model reads on, by how much it has read before.",
    ),
    "eval ensemble": (
        "stage:lmworks.evaluation.fit_ensemble:fit_ensemble",
        "Choose the weights with which models generate as one; judge it on texts left aside.",
    ),
    "eval context": (
        "stage:lmworks.evaluation.context:context",
        "A model before and after its context was extended: sentences found, loss by length.",
    ),
    "eval positions": (
        "stage:lmworks.evaluation.length_extrapolation:length_extrapolation",
        "Train one model per way of telling positions; measure beyond its context.",
    ),
    "eval forgetting": (
        "stage:lmworks.evaluation.continual.compare:compare_continual",
        "What is forgotten from task to task, by method, over seeds, with intervals.",
    ),
    "eval transplant": (
        "stage:lmworks.evaluation.transplant_leaderboard:transplant_leaderboard",
        "Which way to begin new tokens' rows costs a model least, with intervals.",
    ),
    "eval architectures": (
        "stage:lmworks.evaluation.architectures:compare_architectures",
        "Patterns of layers trained side by side at the same compute, with intervals.",
    ),
    "eval curricula": (
        "stage:lmworks.evaluation.curricula:compare_curricula",
        "Orders and parts of the text side by side at equal tokens, with intervals.",
    ),
    "eval scaling": (
        "stage:lmworks.evaluation.scaling:scaling",
        "A series of small runs, the law they follow, and a larger run that tests it.",
    ),
    "eval objectives": (
        "stage:lmworks.evaluation.compare_objectives:compare_objectives",
        "Objectives of pre-training side by side for the same compute, with intervals.",
    ),
    "model transplant": (
        "stage:lmworks.models.transplant.stage:transplant_stage",
        "Put another tokenizer into a trained model.",
    ),
    "model upcycle": (
        "stage:lmworks.models.upcycle:upcycle_stage",
        "Make a model with experts out of a dense one.",
    ),
    "model extend-context": (
        "stage:lmworks.models.extend_context:extend_context",
        "Let a model read longer texts than it was trained on.",
    ),
    "model merge": (
        "lmworks.cli.model_merge:command",
        "Merge models into one, tensor by tensor: mergekit's YAML or flags.",
    ),
    "model merge-adapter": (
        "stage:lmworks.models.adapters.merge_stage:merge_adapter",
        "Fold an adapter into the weights of its base.",
    ),
    "model parity": (
        "lmworks.cli.model_parity:command",
        "Where two models part on the same tokens, and why.",
    ),
    "explain answers": (
        "lmworks.cli.explain_answers:command",
        "What of a conversation fine-tuning would learn, under the model's chat template.",
    ),
    "explain attention": (
        "lmworks.cli.explain_attention:command",
        "What each head of a model looks at in a text.",
    ),
    "explain positions": (
        "lmworks.cli.explain_positions:command",
        "How models are told where a token stands, in pictures.",
    ),
    "gateway serve": (
        "lmworks.cli.gateway:serve",
        "One OpenAI-compatible door to many back ends: keys, limits, fallbacks.",
    ),
    "gateway init": ("lmworks.cli.gateway:init", "Write a commented config to begin with."),
    "gateway check": ("lmworks.cli.gateway:check", "Check a config without starting anything."),
    "gateway keys": ("lmworks.cli.gateway_keys:command", "Make, list, rotate and revoke keys."),
    "gateway usage": ("lmworks.cli.gateway_reports:usage", "What was used, by key, model or day."),
    "gateway log": ("lmworks.cli.gateway_reports:log", "The newest requests."),
    "gateway audit": (
        "lmworks.cli.gateway_reports:audit",
        "What admins did, and whether that log is whole.",
    ),
    "compress prune": (
        "stage:lmworks.compression.pruning.stage:prune_stage",
        "A shorter or narrower model out of a trained one, for distillation to heal.",
    ),
    "compress quantize": (
        "stage:lmworks.compression.quantize:quantize",
        "Make weights smaller; write a GGUF file.",
    ),
    "compress importance": (
        "stage:lmworks.compression.measure_importance:importance",
        "Measure which inputs are large on a text; write an imatrix file.",
    ),
    "compress analyze": (
        "stage:lmworks.evaluation.quality_speed:analyze",
        "Variants of a model in quality, speed, memory and size, and which to take.",
    ),
    "compress optimize": (
        "stage:lmworks.evaluation.optimize_serving:optimize",
        "The fastest way to serve a model here within a bound on quality; writes a models.yaml.",
    ),
    "compress safetensors": (
        "stage:lmworks.compression.quantize_safetensors:quantize_safetensors",
        "Make weights and activations smaller, for vLLM and transformers.",
    ),
    "compress sparsify": (
        "stage:lmworks.compression.sparsify:sparsify",
        "Set a share of the weights to zero: magnitude, Wanda, SparseGPT, 2:4.",
    ),
    "compress bundle": (
        "stage:lmworks.ops.bundle:bundle",
        "Pack a model for a phone or a small computer, held to a memory and replayed.",
    ),
    "compress merge-adapter": (
        "stage:lmworks.evaluation.merged_adapter:merge_into_blocks",
        "Fold an adapter into a GGUF file, keeping the types of its tensors.",
    ),
}

GROUPS: dict[str, str] = {
    "data": "Read, clean and draw from documents.",
    "tokenizer": "Train and look at tokenizers.",
    "train": "Train and tune models.",
    "eval": "Measure models.",
    "model": "Change a trained model, or compare two.",
    "models": "Look after the models of a running server.",
    "explain": "Look into what a model does.",
    "gateway": "One door to many back ends.",
    "compress": "Make models smaller.",
}
STAGE = "stage:"
