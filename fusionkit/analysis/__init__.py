"""See what encoders see: the analyses behind `fusionkit analyze`.

The shape of every subcommand, so that a new one is one module of work and one of command line:

1. `subjects(words)` resolves what the command line names (`tiny:semantic`, `real.dinov2_small`, a checkpoint, a
   plugin's encoder with options) to `Subject`s: facts, readable layers, and `open(device)` for the module in eval mode.
   `find_photos(where)` lists the pictures. Both raise typed errors before any work.
2. A *work* is a function from one batch to one JSON-able mapping per picture. Tokens and attention come from
   `capture.watch(encoder, info, x_BCHW, layers, on_tokens, on_attention)`: each layer is handed on as soon as it is
   computed and must be reduced at once (constant memory). A layer whose attention cannot be had is named with its
   reason, not an error.
3. `stream.run(name, subject, encoder, photos, settings, work, frame)` reads pictures batch by batch, calls the work, and
   appends one line per picture to `OUT/partial/NAME-LABEL.jsonl` (`partial.Partial`). Pictures that are there already
   are skipped: the same command goes on where it was stopped, by Ctrl-C or worse. `settings` (everything the numbers
   depend on; the encoder's config and a digest of its weights are added) must match, else it is an error. Progress is
   `frame.progress(what, done, total)`.
4. What is over all pictures is made by reading the partial results back one by one (`Partial.values`) into `Running`
   means; nothing holds all pictures. What is a sum over all tokens (Gram matrices, normal equations) is kept in `sums.Sums`,
   saved and resumed as one file of matrices that do not grow. What needs a basis first (PCA) fits it on a stated sample of pictures.
5. The result is an `Outcome`: `data` (the JSON report), `files` (relative name -> text or bytes: JSON, PNG and SVG of
   every figure, `NAME.html`: analyses may share a folder), `lines` and `tables` for a terminal, and `fragment`, the lines of a recipe that `--paste`
   prints. Figures come from `curves` (matplotlib) or `sheet` (pictures in rows and columns); the page from
   `page.page(title, lead, sections)`: self-contained, tables sort, pictures inline.
6. The command line module (`fusionkit/cli/analyze_NAME.py`) has the typer function, calls the above inside
   `analyze_output.interruptible()`, and ends with `analyze_output.finish(outcome, output, json, paste)`, which writes every file whole
   or not at all.
"""
