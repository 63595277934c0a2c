"""Label Studio's protocol for ML backends: predictions for tasks of a labelling project.

    task -> image (data: URI, or a file of the one configured Label Studio) -> Detector
         -> rectangles in percent of the image's size, with the labels of the project

`routes` has the paths, `label_config` the labels of the project, `images` reads the tasks' images.
"""

from service.label_studio.routes import label_studio_routes

__all__ = ["label_studio_routes"]
