"""Building, running and saving models. Import from the modules: `fusionkit.model.build`, `.checkpoint`, ..."""
