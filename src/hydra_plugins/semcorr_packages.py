"""The search path of Hydra, with the configuration trees of installed packages: `semcorr.engine.packages`."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class InstalledPackages(SearchPathPlugin):
    """Search path that has the trees of installed packages after semcorr's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the trees, where the path is of a command of semcorr."""
        from semcorr.engine.known_targets import conf_dir
        from semcorr.engine.packages import list_config_trees

        main = next((element.path for element in search_path.get_path() if element.provider == "main"), None)
        if main is None or main.removeprefix("file://") != str(conf_dir()):
            return  # another program that uses Hydra, in the same environment
        for tree in list_config_trees():
            search_path.append(tree.distribution, f"file://{tree.folder}")
