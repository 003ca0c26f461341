"""The directive `command-help`, which shows what `jaxprune COMMAND --help` prints."""

from docutils import nodes
from sphinx.util.docutils import SphinxDirective
from typer.testing import CliRunner

from jaxprune.__main__ import app as program


class CommandHelp(SphinxDirective):
    required_arguments = 1

    def run(self):
        words = [self.arguments[0], "--help"]
        result = CliRunner().invoke(program, words, prog_name="jaxprune", env={"COLUMNS": "96"})
        if result.exit_code:
            raise self.error(result.output)
        text = result.output.strip()
        return [nodes.literal_block(text, text, language="text")]


def setup(app):
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
