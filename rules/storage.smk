"""Files in a bucket, for machines that share no disk (profiles/kubernetes).

With a default storage provider Snakemake keeps inputs and outputs there and gives each job copies of its own. What is
no input or output of a job is said here; without one, every path is itself.
"""

LARGE = 100_000_000  # bytes, from which a file's date stands for what it holds


def here(path):
    """Where a job finds one of the run's files: at its path, or its copy of what the storage holds."""
    return str(in_storage(path).local_path()) if STORED else path


def in_storage(path):
    return workflow.storage_registry.default_storage_provider.object(f"{storage_prefix()}/{path}")


def storage_prefix():
    return workflow.storage_settings.default_storage_prefix.rstrip("/")


def shipped(files):
    """Local files of the recipe as inputs. They come into a pod with the sources: to Snakemake they are none there."""
    return [] if STORED else files


def contents(files):
    """A param that tells what those files hold, since Snakemake does not. files: a list, or a function that gives it."""

    def told(wildcards):
        found = [Path(file) for file in (files(wildcards) if callable(files) else files)]
        return [file_digest(f) if f.stat().st_size < LARGE else str(f.stat().st_mtime_ns) for f in found]

    return {"shipped": told} if STORED else {}


def prompt_rows():
    """Where the index leaves each batch's rows for the batch's own job: a folder, or one in the storage."""
    return f"{storage_prefix()}/{RUN}/work/prompts" if STORED else f"{RUN}/work/prompts"


@cache
def fetched(file, mtime):
    """What a JSON file holds that decides which jobs there are: read where it is, or from the storage, once."""
    if mtime is not None:
        return read_json(file)
    stored, path = file.storage_object, Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored.retrieve_object()
    found = read_json(path)
    path.unlink()  # a copy that Snakemake does not know of would be newer than what was made from it
    return found


def mend_plugins():
    """Two things that the plugins get wrong, each of which would end a run.

    snakemake-storage-plugin-s3 0.3.6 remembers that a folder is not there, and so misses it once a job has made it.
    snakemake-executor-plugin-kubernetes 0.5.1 asks for the log of a failed container's previous start. It had none:
    an API server answers 400, and no job is tried again.
    """
    if STORED == "s3":
        from snakemake_storage_plugin_s3 import StorageObject

        StorageObject.is_dir = lambda self: any(self.get_subkeys())
    if "kubernetes.client" in sys.modules:
        from kubernetes.client import CoreV1Api

        read = CoreV1Api.read_namespaced_pod_log
        CoreV1Api.read_namespaced_pod_log = lambda self, *names, previous=None, **more: read(self, *names, **more)


if STORED:
    mend_plugins()
